"""The way to another machine: from the committed log to an answer of an emulated board."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tune import board, cli
from tune.emulator import qemu

pytestmark = pytest.mark.slow
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
DEVICE = ["--target", "arm64", "--device", "cortex-a76"]
SMALL = ["--alpha", "0.25", "--resolution", "32", "--threads", "1"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"the emulated board needs {qemu.PROGRAM}")
    with socket.socket() as probe:
        probe.bind((board.HOST, 0))
        port = int(probe.getsockname()[1])
    yield board.start(port).address
    board.stop(port)


def test_a_photo_is_known_there(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = str(tmp_path / "arm64.so")
    tuned = ["--require-tuned", "--allow-estimates"]
    assert cli.main(["build", *DEVICE, "--threads", "1", *tuned, "-o", library]) == 0
    assert "28 estimated" in capsys.readouterr().out
    photo = str(PHOTOS / "chelsea.png")
    assert cli.main(["classify", "--rpc", address, "--lib", library, photo]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["0.497", "tabby", "cat"]


def test_layers_are_timed_there(address: str, tmp_path: Path) -> None:
    library, result = tmp_path / "arm64.so", tmp_path / "profile.json"
    assert cli.main(["build", *DEVICE, *SMALL, "-o", str(library)]) == 0
    there = ["--target", "arm64", "--rpc", address, "--threads", "1", "--rounds", "2"]
    assert cli.main(["profile", *there, "--lib", str(library), "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert [row["name"] for row in found["layers"]] == [row["name"] for row in manifest["layers"]]
    assert min(row["time_s"] for row in found["layers"]) > 0
    assert sum(row["time_s"] for row in found["layers"]) < 60


def test_run_measures_on_the_board_whose_core_it_reads(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    there = ["--target", "arm64", "--rpc", address, "--log", str(log)]
    assert cli.main(["run", *there, *SMALL, "--trials", "2"]) == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["device"] for record in records] == ["cortex-a76"] * len(records)
    trials = [record for record in records if record["stage"] == "trial"]
    assert [record["board"] for record in trials] == [address] * 2
    assert all(record["estimator"] is None and record["checked"] for record in records)


def test_an_estimate_is_not_enough_when_measurements_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "arm64.so")
    assert cli.main(["build", *DEVICE, "--threads", "1", "--require-tuned", "-o", output]) == 1
    said = capsys.readouterr().err
    assert " for stem, block1.depthwise, " in said
    assert " (only an estimate, by instructions)" in said


def test_bench_counts_where_there_is_no_board(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "counts.json"
    options = [*DEVICE, *SMALL, "--peers", "ncnn", "--json", str(table)]
    assert cli.main(["bench", *options]) == 0
    tally = json.loads(table.read_text())
    ours, ncnn = sorted(tally["rows"], key=lambda row: row["name"] != "septune")
    assert tally["floor"] < ours["instructions"] < ncnn["instructions"]
    assert "% of fmla floor" in capsys.readouterr().out


def test_bench_times_our_library_on_a_board(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "times.json"
    options = ["--target", "arm64", "--rpc", address, *SMALL, "--rounds", "1"]
    assert cli.main(["bench", *options, "--json", str(table)]) == 0
    comparison = json.loads(table.read_text())
    assert [row["name"] for row in comparison["rows"]] == ["septune"]
    assert comparison["rows"][0]["median_s"] > comparison["floor_s"]
