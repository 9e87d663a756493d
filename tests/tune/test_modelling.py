"""The floors of a network, as the command prints them, and estimates beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kernels import kernel, kernels_for
from kernels.version import version
from kernels.workload import parse
from targets import cuda
from tune import cli
from tune.database import Record
from tune.mobilenet import MobileNet
from tune.pipeline import Log, roofline

H100 = cuda.DEVICES["h100"]


def sums(printed: str) -> list[list[str]]:
    """The rows below the last head of a printed table, cell by cell."""
    lines = printed.splitlines()
    start = max(number for number, line in enumerate(lines) if line.startswith("network"))
    return [line.split() for line in lines[start + 1 :] if line.startswith(("apart", "fused"))]


@pytest.mark.parametrize(
    ("batch", "apart", "fused"),
    [
        ("1", ["28", "8.6", "33.3"], ["15", "6.3", "19.5"]),
        ("256", ["28", "1579.2", "1603.8"], ["15", "987.2", "1000.4"]),
    ],
)
def test_the_command_prints_floors_and_that_they_are_none_measured(
    batch: str,
    apart: list[str],
    fused: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["roofline", "--device", "sm_90", "--batch", batch, "--dtype", "float16"]
    assert cli.main([*command, "--log", str(tmp_path / "none.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "no GPU has measured any of this" in printed
    assert [row[-3:] for row in sums(printed)] == [apart, fused]


def test_float32_is_on_cuda_cores_and_tf32_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "roofline.json"
    command = ["roofline", "--device", "h100", "--log", str(tmp_path / "none"), "--json", str(file)]
    assert cli.main(command) == 0
    assert [row[1] for row in sums(capsys.readouterr().out)] == ["float32"] * 2 + ["TF32"] * 2
    totals = json.loads(file.read_text())["totals"]
    assert [total["math"] for total in totals] == ["f32", "f32", "tf32", "tf32"]
    assert cli.main([*command[:2], "t4", *command[3:]]) == 0
    assert len(sums(capsys.readouterr().out)) == 2  # no TF32 on Turing


def test_a_cpu_has_no_such_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roofline", "--device", "znver4"]) == 2
    assert "sm_90" in capsys.readouterr().err


def test_estimates_stand_beside_floors_and_sum_up_when_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MobileNet(dtype="float16")
    bare = roofline(model, H100, Log(path=tmp_path / "none"))
    assert all(row["predicted_s"] is None for row in bare["kernels"])
    records = [record(row["workload"]) for row in bare["kernels"] if row["layers"] < 5]
    monkeypatch.setattr(Log, "records", lambda log: records)
    some = roofline(model, H100, Log(path=tmp_path / "none"))
    assert {row["predicted_s"] for row in some["kernels"]} == {None, 4e-6}
    assert all(total["predicted_s"] is None for total in some["totals"])
    records += [record(row["workload"]) for row in bare["kernels"]]
    every = roofline(model, H100, Log(path=tmp_path / "none"))
    predicted = {total["kind"]: total["predicted_s"] for total in every["totals"]}
    assert predicted == {"apart": pytest.approx(28 * 4e-6), "fused": pytest.approx(15 * 4e-6)}


def test_measurements_are_no_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [layer.workload.key for layer in MobileNet(dtype="float16").layers]
    measured = [replace(record(key), estimator=None, checked=True) for key in keys]
    monkeypatch.setattr(Log, "records", lambda log: measured)
    found = roofline(MobileNet(dtype="float16"), H100, Log(path=tmp_path / "none"))
    assert all(row["predicted_s"] is None for row in found["kernels"])


def record(key: str) -> Record:
    """An estimate of a workload's first kernel in its default config."""
    workload = parse(key)
    name = kernels_for(workload, H100)[0]
    return Record(
        workload=key,
        kernel=name,
        kernel_version=version(name, "cuda", workload.dtype),
        config=kernel(name).space(workload, H100).default,
        target="cuda",
        device="h100",
        threads=1,
        stage="trial",
        seconds=(4e-6,),
        error=None,
        checked=False,
        estimator="roofline",
        tvm="0",
        when="2026-11-25T00:00:00+00:00",
    )
