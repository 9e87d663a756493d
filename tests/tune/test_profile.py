"""What each layer takes inside its library: here, and how times of calls become rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kernels.workload import flops, moved_bytes
from tune import cli
from tune.errors import UsageError
from tune.mobilenet import MobileNet
from tune.profile import Watched, rows
from tune.report.profile import profile_table
from tune.runtime import load

SMALL = ["--alpha", "0.25", "--resolution", "32", "--classes", "10", "--threads", "1"]
MODEL = MobileNet(alpha=0.25, resolution=32, classes=10)
LAYERS = [
    {"name": layer.name, "workload": layer.workload.key, "kernel": "te.k", "config": {"A": 1}}
    for layer in MODEL.layers[:2]
]
CONDITIONS = {"workload": "a network", "device": "here", "threads": 2, "load_average": 0.25}


def watched(*inferences: dict[str, float]) -> Watched:
    return Watched(inferences_s=(1.0,), kernels=tuple(tuple(each.items()) for each in inferences))


def test_rows_are_medians_of_the_same_kernels() -> None:
    times = [{"stem": 1.0, "block1": 5.0}, {"stem": 9.0, "block1": 4.0}, {"stem": 2.0, "block1": 6}]
    first, second = rows(LAYERS, watched(*times))
    assert (first["name"], first["time_s"], second["time_s"]) == ("stem", 2.0, 5.0)
    stem = MODEL.layers[0].workload
    assert (first["flops"], first["moved_bytes"]) == (flops(stem), moved_bytes(stem))
    assert first["recorded_s"] is None
    [*_, tuned] = rows([LAYERS[0], LAYERS[1] | {"time_s": 3e-6}], watched(*times))
    assert tuned["recorded_s"] == 3e-6


def test_what_makes_floats_of_bytes_has_a_row_of_its_own() -> None:
    first, *others = rows(LAYERS, watched({"normalise": 3.0, "stem": 1.0, "block1": 2.0}))
    assert (first["name"], first["workload"], first["time_s"]) == ("normalise", None, 3.0)
    assert [row["time_s"] for row in others] == [1.0, 2.0]


@pytest.mark.parametrize(
    "times",
    [
        [{"stem": 1.0}],
        [{"a": 1.0, "b": 1.0, "stem": 1.0, "block1": 1.0}],
        [{"stem": 1.0, "block1": 1.0}, {"stem": 1.0, "block2": 1.0}],
    ],
    ids=["fewer", "more", "others"],
)
def test_kernels_that_are_not_the_manifests_are_refused(times: list[dict[str, float]]) -> None:
    with pytest.raises(
        UsageError, match=r"calls \d kernels; expected one for each of the 2 layers"
    ):
        rows(LAYERS, watched(*times))


def test_shares_are_of_all_layers_and_of_the_peak() -> None:
    found = rows(LAYERS, watched({"stem": 1e-3, "block1": 3e-3}))
    peak_flops = 2 * found[0]["flops"] / 1e-3
    result = CONDITIONS | {"layers": found, "inference_s": 5e-3, "peak_flops": peak_flops}
    lines = profile_table(result | {"memory_bytes_per_s": None}).splitlines()
    assert lines[0].endswith("GFLOP/s, load average 0.25")
    assert "memory 7.0 GB/s" in profile_table(result | {"memory_bytes_per_s": 7e9})
    stem = lines[3].split()
    assert stem[:2] == ["stem", "te.k"]
    assert stem[2:4] + stem[5:6] == ["1000.0", "25.0%", "50%"]
    assert lines[-1] == "all layers: 4.00 ms; an inference that nobody watches: 5.00 ms"


def test_a_gpus_kernels_have_gaps() -> None:
    kernels = [{"kernel": "dw", "time_s": 2e-6, "gap_s": 1e-6}]
    lines = profile_table(CONDITIONS | {"kernels": kernels}).splitlines()
    assert lines[3].split() == ["dw", "2.00", "1.00"]
    assert lines[-1] == "all kernels: 3.00 µs"


@pytest.mark.slow
@pytest.mark.parametrize("input_dtype", ["float", "uint8"])
def test_a_library_is_profiled_here(
    input_dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each layer of the manifest once, in its order, and nothing of the machine that calls them."""
    log, library, result = (tmp_path / name for name in ("none.jsonl", "net.so", "profile.json"))
    log.touch()
    built = ["--input", input_dtype, "--log", str(log), "-o", str(library)]
    assert cli.main(["build", *SMALL, *built]) == 0
    options = ["--lib", str(library), "--rounds", "2", "--json", str(result)]
    assert cli.main(["profile", "--threads", "1", *options]) == 0
    manifest = json.loads(library.with_suffix(".json").read_text())
    expected = [layer["name"] for layer in manifest["layers"]]
    found = json.loads(result.read_text())
    extra = ["normalise"] if input_dtype == "uint8" else []
    assert [row["name"] for row in found["layers"]] == extra + expected
    assert all(row["time_s"] > 0 for row in found["layers"])
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if line.startswith(("stem", "head"))] == [
        "stem",
        "head",
    ]

    seen: list[str] = []
    network = load(library, threads=1)
    network.watch(lambda name, seconds: seen.append(name))
    network(np.zeros(network.input_shape, network.dtype))
    assert len(seen) == len(extra + expected)


def test_a_library_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "--lib", str(tmp_path / "none.so")]) == 2
    assert "no library at" in capsys.readouterr().err
