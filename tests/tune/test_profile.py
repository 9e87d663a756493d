"""What each layer takes inside its library: here, and how times of calls become rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernels.workload import flops, moved_bytes
from tune import cli
from tune.errors import UsageError
from tune.mobilenet import MobileNet
from tune.profile import Bursts, Trace, rows, split
from tune.report.profile import profile_table
from tune.runners.local import LocalRunner
from tune.runners.worker import WorkerTimeout

SMALL = ["--alpha", "0.25", "--resolution", "32", "--classes", "10", "--threads", "1"]
MODEL = MobileNet(alpha=0.25, resolution=32, classes=10)
LAYERS = [
    {"name": layer.name, "workload": layer.workload.key, "kernel": "te.k", "config": {"A": 1}}
    for layer in MODEL.layers[:2]
]
MEASURED = {"why": "measured", "time_s": 1e-6}
CONDITIONS = {"workload": "a network", "device": "here", "threads": 2, "load_average": 0.25}


def traced(*inferences: dict[str, float]) -> Trace:
    return Trace(inferences_s=(1.0,), kernels=tuple(tuple(each.items()) for each in inferences))


def test_the_calls_of_a_burst_are_those_of_its_inferences_but_the_first() -> None:
    text = "".join(f"stem {n}000\nhead {n}\n" for n in range(1, 5))
    third, fourth = split(text, Bursts(warmup=2, timed=2))
    assert third == (("stem", pytest.approx(3e-6)), ("head", pytest.approx(3e-9)))
    assert fourth[0] == ("stem", pytest.approx(4e-6))
    assert split("", Bursts()) == []


def test_rows_are_medians_of_the_same_kernels() -> None:
    times = [{"stem": 1.0, "block1": 5.0}, {"stem": 9.0, "block1": 4.0}, {"stem": 2.0, "block1": 6}]
    first, second = rows(LAYERS, traced(*times))
    assert (first["name"], first["time_s"], second["time_s"]) == ("stem", 2.0, 5.0)
    stem = MODEL.layers[0].workload
    assert (first["flops"], first["moved_bytes"]) == (flops(stem), moved_bytes(stem))
    assert first["recorded_s"] is None
    recorded = [layer | {"time_s": 3e-6} for layer in LAYERS]
    recorded[0]["why"], recorded[1]["why"] = "estimated", "measured"
    assert [row["recorded_s"] for row in rows(recorded, traced(*times))] == [None, 3e-6]


def test_what_makes_floats_of_bytes_has_a_row_of_its_own() -> None:
    first, *others = rows(LAYERS, traced({"normalise": 3.0, "stem": 1.0, "block1": 2.0}))
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
        rows(LAYERS, traced(*times))


def test_shares_are_of_all_layers_and_of_the_peak() -> None:
    found = rows(LAYERS, traced({"stem": 1e-3, "block1": 3e-3}))
    peak_flops = 2 * found[0]["flops"] / 1e-3
    result = CONDITIONS | {"layers": found, "inference_s": 5e-3, "peak_flops": peak_flops}
    lines = profile_table(result | {"memory_bytes_per_s": None}).splitlines()
    assert lines[0].endswith("GFLOP/s, load average 0.25")
    assert "memory 7.0 GB/s" in profile_table(result | {"memory_bytes_per_s": 7e9})
    stem = lines[3].split()
    assert stem[:2] == ["stem", "te.k"]
    assert stem[2:4] + stem[5:6] == ["1000.0", "25.0%", "50%"]
    assert lines[-1] == "all layers: 4.00 ms; an inference without a trace: 5.00 ms"


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

    total_s = sum(row["time_s"] for row in found["layers"])
    assert 0.2 < total_s / found["inference_s"] < 5


def test_a_library_of_the_log_and_of_a_batch_is_profiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "none.jsonl"
    log.touch()
    assert cli.main(["profile", *SMALL, "--batch", "2", "--rounds", "1", "--log", str(log)]) == 0
    printed = capsys.readouterr().out
    assert "batch=2" in printed
    assert "1 thread, " in printed


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    (folder / "none.jsonl").touch()
    options = ["--log", str(folder / "none.jsonl"), "-o", str(folder / "net.so")]
    assert cli.main(["build", *SMALL, *options]) == 0
    return folder / "net.so"


def test_threads_are_those_it_was_built_for(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["profile", "--lib", str(library), "--rounds", "1"]) == 0
    assert "1 thread, " in capsys.readouterr().out


def test_what_was_recorded_for_other_threads_is_left_out(library: Path, tmp_path: Path) -> None:
    copy, result = tmp_path / "net.so", tmp_path / "profile.json"
    copy.write_bytes(library.read_bytes())
    manifest = json.loads(library.with_suffix(".json").read_text())
    manifest["layers"] = [layer | MEASURED for layer in manifest["layers"]]
    for threads, recorded in ((1, 1e-6), (3, None)):
        manifest["threads"] = threads
        copy.with_suffix(".json").write_text(json.dumps(manifest))
        options = ["--threads", "1", "--rounds", "1", "--json", str(result)]
        assert cli.main(["profile", "--lib", str(copy), *options]) == 0
        found = json.loads(result.read_text())["layers"]
        assert {row["recorded_s"] for row in found} == {recorded}


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--target", "arm64", "--device", "cortex-a76"], 2, "pass --target x86"),
        (["--weights", "mine.pt"], 2, "--weights mine.pt would go into a library"),
        (["--batch", "2"], 2, "computes a network of batch 1"),
    ],
    ids=["kind", "weights", "network"],
)
def test_requests_that_a_library_does_not_fit(
    library: Path,
    options: list[str],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["profile", "--lib", str(library), *options]) == status
    assert said in capsys.readouterr().err


def test_a_library_that_was_changed_is_refused(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "net.so"
    copy.write_bytes(library.read_bytes() + b"more")
    copy.with_suffix(".json").write_bytes(library.with_suffix(".json").read_bytes())
    assert cli.main(["profile", "--lib", str(copy)]) == 2
    assert "is not the library that its manifest describes" in capsys.readouterr().err


def test_without_a_board_other_machines_have_no_profile(capsys: pytest.CaptureFixture[str]) -> None:
    device = ["--target", "arm64", "--device", "cortex-a76", "--threads", "1"]
    assert cli.main(["profile", *device]) == 3
    assert "cannot run code for cortex-a76; expected" in capsys.readouterr().err


def test_a_library_that_is_not_done_in_time(
    library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def late(self: LocalRunner, *_: object) -> None:
        raise WorkerTimeout("no answer after 7 s")

    monkeypatch.setattr(LocalRunner, "trace", late)
    assert cli.main(["profile", "--lib", str(library), "--rounds", "2"]) == 1
    assert "is not done: no answer after 7 s; expected 40 inferences" in capsys.readouterr().err


def test_a_library_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "--lib", str(tmp_path / "none.so")]) == 2
    assert "no library at" in capsys.readouterr().err
