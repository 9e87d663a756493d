"""Whole networks, counted under emulation: ours against a peer, and what may go wrong."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from targets import arm64
from tune import weights
from tune.compile import compile_network
from tune.count import OURS, Tally, count
from tune.emulator import qemu
from tune.emulator.guest import guest
from tune.emulator.instrument import Instrument, instrument
from tune.errors import GateError
from tune.graph import assemble
from tune.mobilenet import MobileNet
from tune.plan import plan

TARGET = arm64.DEVICES["cortex-a76"]
MODEL = MobileNet(alpha=0.25, resolution=32, classes=10, body="shallow")
WEIGHTS = weights.random(MODEL, seed=3)


@pytest.fixture(scope="module")
def machine() -> Instrument:
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"counting instructions needs {qemu.PROGRAM}")
    return instrument(guest(), arm64.linker() or ())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(MODEL, tmp_path_factory.mktemp("network") / "network.so")


def built(model: MobileNet, path: Path) -> Path:
    """The library of the network with every kernel's default config."""
    choices = plan(model.layers, [], TARGET, threads=1)
    compile_network(assemble(choices, weights.fold(WEIGHTS, model), TARGET), TARGET, path)
    return path


@pytest.fixture(scope="module")
def tally(machine: Instrument, library: Path) -> Tally:
    return count(MODEL, WEIGHTS, library, machine, peers=["ncnn"])


@pytest.mark.slow
def test_ours_and_a_peer_are_right_and_above_the_floor(tally: Tally) -> None:
    rows = {row.name: row for row in tally.rows}
    assert set(rows) == {OURS, "ncnn"}
    assert tally.absent == ()
    assert tally.floor == MODEL.macs // 4
    for row in rows.values():
        assert tally.floor < row.instructions < 20 * tally.floor
        assert row.max_abs_diff < 1e-4
        assert row.ratio_to_ours == row.instructions / rows[OURS].instructions
    assert [row.instructions for row in tally.rows] == sorted(r.instructions for r in tally.rows)
    assert json.loads(json.dumps(asdict(tally)))["rows"][0]["name"] == tally.rows[0].name


@pytest.mark.slow
def test_float16_is_counted_among_those_that_compute_in_it(
    machine: Instrument, tally: Tally, tmp_path: Path
) -> None:
    half = replace(MODEL, dtype="float16")
    library = built(half, tmp_path / "half.so")
    found = count(half, WEIGHTS, library, machine, peers=["onnxruntime", "ncnn"])
    assert found.floor == MODEL.macs // 8
    assert {row.name for row in found.rows} == {OURS, "ncnn"}
    assert [each.name for each in found.absent] == ["onnxruntime"]
    halves, fulls = (
        next(row.instructions for row in each.rows if row.name == OURS) for each in (found, tally)
    )
    assert halves < 0.75 * fulls


def test_counts_repeat_wherever_the_library_lies(
    machine: Instrument, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a longer name than before").mkdir()
    copy = shutil.copy(library, tmp_path / "a longer name than before" / "copy.so")
    tallies = [count(MODEL, WEIGHTS, library, machine, peers=[])]
    monkeypatch.setenv("SOMETHING", "x" * 1000)
    tallies.append(count(MODEL, WEIGHTS, Path(copy), machine, peers=[]))
    assert tallies[0] == tallies[1]


def test_a_peer_that_cannot_be_had_is_absent(
    machine: Instrument, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    tally = count(
        MODEL,
        WEIGHTS,
        library,
        machine,
        peers=["onnxruntime"],
        wheels={"onnxruntime": ["onnxruntime==0.0"]},
    )
    assert [row.name for row in tally.rows] == [OURS]
    assert tally.absent[0].name == "onnxruntime"
    assert "pip cannot fetch aarch64 wheels of onnxruntime==0.0" in tally.absent[0].reason


def test_a_library_of_other_weights_has_no_count(machine: Instrument, library: Path) -> None:
    with pytest.raises(GateError, match="logits are off by"):
        count(MODEL, weights.random(MODEL, seed=4), library, machine, peers=[])


def test_a_library_that_does_not_load_is_told(machine: Instrument, tmp_path: Path) -> None:
    library = tmp_path / "network.so"
    library.write_text("hello")
    with pytest.raises(GateError, match=r"network\.so has no result: status 1"):
        count(MODEL, WEIGHTS, library, machine, peers=[])
