"""Why each layer is computed as it is: the plan in rows, with its numbers and its code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from targets import machines
from tune import cli
from tune.cubin import cubins, inspect
from tune.mobilenet import MobileNet
from tune.pipeline import Log, explain
from tune.report import plan_table

MODEL = MobileNet(alpha=0.25, resolution=32, classes=10, body="shallow")
PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "coffee.png"
ARM = machines("arm64").DEVICES["cortex-a76"]


def test_a_row_a_layer_and_no_time_that_is_not_known(tmp_path: Path) -> None:
    log = Log(path=tmp_path / "empty.jsonl")
    rows = explain(MODEL, ARM, log, threads=1, code=False)
    assert [row["name"] for row in rows] == [layer.name for layer in MODEL.layers]
    for row, layer in zip(rows, MODEL.layers, strict=True):
        assert (row["workload"], row["why"]) == (layer.workload.key, "default")
        assert row["time_s"] is row["code"] is row["apart_s"] is None


def test_a_record_without_a_peak_has_no_share_of_it() -> None:
    row = {"name": "stem", "kernel": "te.conv", "config": {}, "why": "measured", "time_s": 1e-5}
    row |= {"workload": "conv", "estimator": None, "flops": 10**6, "code": None}
    row |= {"apart_s": None, "fused_s": None}
    for peak_flops, cells in ((None, ["10.0"]), (1e12, ["10.0", "10%"])):
        lines = plan_table([row | {"peak_flops": peak_flops}]).splitlines()
        assert lines[1].split() == ["stem", "te.conv", "measured", *cells]


@pytest.mark.slow
def test_the_pointwise_loops_of_the_committed_log_are_nearly_all_multiply_adds() -> None:
    """Of the configs that a cortex-a76 gets: at least 90 % of what the model can start."""
    if shutil.which("llvm-mca-19") is None and os.environ.get("CI") != "true":
        pytest.skip("the pipeline model needs llvm-mca")
    rows = explain(MobileNet(), ARM, Log.at(None, ARM), threads=1, code=True)
    shares = {
        row["workload"]: float(row["code"].split("%")[0].split()[-1])
        for row in rows
        if row["workload"].startswith("pointwise")
    }
    assert len(shares) == 9
    assert {key: share for key, share in shares.items() if share < 90} == {}


@pytest.mark.slow
def test_a_library_for_a_gpu_is_built_and_explained_without_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What explain names is what the library holds, and nothing spills."""
    library, path = tmp_path / "network.so", tmp_path / "plan.json"
    which = ["--alpha", "0.25", "--resolution", "64", "--dtype", "float16"]
    where = ["--target", "cuda", "--device", "sm_90", "--log", str(tmp_path / "empty.jsonl")]
    assert cli.main(["build", *where, *which, "-o", str(library)]) == 0
    assert cli.main(["explain", *where, *which, "--code", "--json", str(path)]) == 0
    held = {one.name for cubin in cubins(library.read_bytes()) for one in inspect(cubin).kernels}
    rows = json.loads(path.read_text())
    assert len(rows) == len(MobileNet().layers)
    for row in rows:
        assert {part.partition(",")[0] for part in row["code"].split("; ")} <= held
        assert " 0 bytes spilt" in row["code"]
    assert cli.main(["classify", "--lib", str(library), str(PHOTO)]) == 3
    assert "was built for h100, whose code this machine cannot run" in capsys.readouterr().err


@pytest.mark.slow
def test_code_of_two_layers_in_one_is_of_both(tmp_path: Path) -> None:
    if shutil.which("llvm-mca-19") is None and os.environ.get("CI") != "true":
        pytest.skip("the pipeline model needs llvm-mca")
    xeon = machines("x86").DEVICES["sapphirerapids"]
    rows = explain(MobileNet(), xeon, Log.at(None, xeon), threads=1, code=True)
    codes = {row["name"]: row["code"] for row in rows}
    assert "; " not in codes["stem"] + codes["head"]
    product, window = codes["block7"].split("; ")
    assert "products of tiles of" in product
    assert "% of what the model of sapphirerapids can start" in window


def test_command_prints_the_committed_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    device = ["--target", "x86", "--device", "znver4", "--threads", "2"]
    assert cli.main(["explain", *device, "--json", str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = json.loads(path.read_text())
    assert printed[0].split()[:5] == ["layer", "kernel", "config", "why", "µs"]
    assert [line.split()[0] for line in printed[1 : len(rows) + 1]] == [r["name"] for r in rows]
    assert printed[len(rows) + 1].startswith("all layers: ")
    for line, row in zip(printed[1:], rows, strict=False):
        assert f"{row['time_s'] * 1e6:.1f}" in line
