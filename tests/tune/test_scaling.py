"""The model of more cores on the committed log: what it must reproduce, and what it prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.te import relay as kernels_relay
from kernels.workload import separables
from targets import x86
from tune import cli, database
from tune.errors import GateError, SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.multicore import SOURCES, Cores
from tune.pipeline import Log, scaling
from tune.plan import plan
from tune.runners import relay
from tune.runners.relay import VECTORS, costs
from tune.runners.worker import Worker

ZNVER4 = x86.DEVICES["znver4"]
LOG = Log.at(None, ZNVER4)
COUNTS = (1, 2, 4, 8, 64)
COMMAND = ["roofline", "--target", "x86", "--device", "znver4"]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return scaling(MobileNet(), ZNVER4, LOG, threads=COUNTS)


def recorded_s(threads: int) -> float:
    choices = plan(MobileNet().layers, LOG.records(), ZNVER4, threads)
    times = [choice.time_s for choice in choices if choice.why == "measured"]
    assert len(times) == len(choices)
    return sum(filter(None, times))


def test_one_thread_is_what_was_recorded(found: dict[str, Any]) -> None:
    one = found["rows"][0]
    assert one["threads"] == 1
    for way in ("planned", "divided", "apiece"):
        assert one[way]["seconds"] == pytest.approx(recorded_s(1), rel=1e-9)
    assert found["carried_over"] == 0


def test_two_threads_are_predicted_within_three_percent(found: dict[str, Any]) -> None:
    *kinds, every = found["check"]
    assert every["kind"] == "all"
    assert every["recorded_s"] == pytest.approx(recorded_s(2), rel=1e-9)
    assert every["predicted_s"] == pytest.approx(every["recorded_s"], rel=0.03)
    assert every["predicted_s"] == pytest.approx(found["rows"][1]["planned"]["seconds"])
    for name in ("alone_s", "predicted_s", "recorded_s"):
        assert sum(kind[name] for kind in kinds) == pytest.approx(every[name])
    assert {kind["kind"] for kind in kinds} >= {"conv", "depthwise", "pointwise", "head"}
    for kind in kinds:
        assert kind["predicted_s"] == pytest.approx(kind["recorded_s"], rel=0.2), kind["kind"]


def test_what_is_predicted_of_more_is_possible(found: dict[str, Any]) -> None:
    alone_s = found["rows"][0]["apiece"]["seconds"]
    for row in found["rows"]:
        threads, planned, divided, apiece = (
            row[name] for name in ("threads", "planned", "divided", "apiece")
        )
        # Strassen's product on two levels does with 49 of 64 multiply-adds.
        assert planned["floor_s"] * 49 / 64 < divided["seconds"]
        assert divided["seconds"] <= planned["seconds"] + 1e-12
        assert planned["seconds"] == pytest.approx(sum(planned["terms"].values()))
        assert alone_s <= apiece["seconds"] < 1.1 * alone_s
        assert apiece["images_per_s"] == pytest.approx(threads / apiece["seconds"])
        # what threads share can only cost: one image each is never the slower way
        assert apiece["images_per_s"] >= divided["images_per_s"] * (1 - 1e-9)
    floors = [row["planned"]["floor_s"] for row in found["rows"]]
    assert floors == sorted(floors, reverse=True)
    assert 1 < found["fastest"]["threads"] < 64
    assert found["fastest"]["seconds"] <= min(row["planned"]["seconds"] for row in found["rows"])


@pytest.mark.slow
def test_a_batch_is_carried_over_from_one_image() -> None:
    batch = scaling(MobileNet(batch=16), ZNVER4, LOG, threads=(1, 8))  # of which are no records
    assert batch["carried_over"] == batch["layers"] == 28
    assert batch["check"] == []
    one, eight = batch["rows"]
    assert one["planned"]["seconds"] == pytest.approx(16 * recorded_s(1), rel=0.01)
    assert one["planned"]["images_per_s"] == pytest.approx(1 / recorded_s(1), rel=0.01)
    single = scaling(MobileNet(), ZNVER4, LOG, threads=(8,))["rows"][0]
    # more tasks, and a fork for sixteen images
    assert eight["planned"]["images_per_s"] > single["planned"]["images_per_s"]


def test_another_width_is_carried_over_by_multiply_adds(tmp_path: Path) -> None:
    single = [layer.workload for layer in MobileNet().layers]
    keys = {workload.key for workload in (*single, *separables(single))}
    records = [record for record in LOG.records() if record.workload in keys]
    database.append(tmp_path / "log", records)  # not those of other widths, which are nearer
    log = Log(path=tmp_path / "log")
    half = scaling(MobileNet(alpha=0.6), ZNVER4, log, threads=(1,))
    assert half["carried_over"] == 28
    share = MobileNet(alpha=0.6).macs / MobileNet().macs
    assert half["rows"][0]["planned"]["seconds"] == pytest.approx(share * recorded_s(1), rel=0.2)


def test_memory_given_counts_and_the_records_stay_what_they_are() -> None:
    slow = scaling(MobileNet(), ZNVER4, LOG, threads=(2, 64), memory_bytes_per_s=20e9)
    assert slow["cores"]["memory_bytes_per_s"] == 20e9
    assert slow["sources"] == SOURCES | {"memory_bytes_per_s": "given"}
    weights_s = 4 * MobileNet().parameters / 20e9
    assert slow["rows"][1]["apiece"]["seconds"] > 0.9 * 64 * weights_s
    assert slow["rows"][1]["planned"]["terms"]["memory_s"] > 0
    assert slow["check"] == scaling(MobileNet(), ZNVER4, LOG, threads=(2,))["check"]


def test_the_command_prints_the_model_its_sources_and_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], found: dict[str, Any]
) -> None:
    file = tmp_path / "scaling.json"
    assert cli.main([*COMMAND, "--threads", "64,1,2,8,4,8", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nobody has measured any of this on other than 1 and 2 threads" in lines[0]
    for what in ("fork and join of a loop", "from memory to all"):
        [line] = [line for line in lines if line.startswith(what)]
        assert ("measured" in line) != ("assumed" in line)
    rows = [line.split() for line in lines if "all threads on one, as tuned" in line]
    assert [int(row[0]) for row in rows] == list(COUNTS)
    assert [float(row[-8]) for row in rows] == [
        round(row["planned"]["seconds"] * 1e3, 2) for row in found["rows"]
    ]
    assert sum("each thread on one of its own" in line for line in lines) == len(COUNTS)
    assert any(line.startswith("as tuned, one is fastest on") for line in lines)
    assert [line.split()[-1] for line in lines if line.startswith("all  ")] == [
        f"{found['check'][-1]['predicted_s'] / found['check'][-1]['recorded_s']:.2f}"
    ]
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("--target x86 --threads 0", 2, "'0' is no count; expected a whole number from 1 up"),
        ("--target x86 --threads 4,", 2, "'' is no count; expected a whole number from 1 up"),
        ("--target x86 --threads 4096", 2, "threads are 4096; expected at most 1024; ask for "),
        ("--target x86 --memory 0", 2, "'0' is no rate; expected GB/s, e.g. 100 or 460.8"),
        ("--target x86 --memory fast", 2, "'fast' is no rate; expected GB/s, e.g. 100 or 460.8"),
        ("--target cuda --device h100 --threads 4", 2, "--threads is of a CPU's cores, and h100 "),
        ("--target cuda --device h100 --memory 9", 2, "--memory is of a CPU's cores, and h100 "),
        ("--target cuda --device h100 --probe", 2, "--probe is of a CPU's cores, and h100 is a "),
        ("--target x86 --device h100", 2, "device 'h100' is not known; expected one of x86-64-v3"),
        ("--target x86 --device znver4 --log {}/none", 1, "no measurement on one thread of znver4"),
        ("--target arm64 --device cortex-a76", 1, "no measurement on one thread of cortex-a76 in"),
        ("--target x86 --device znver4 --dtype float16", 1, "no kernel computes it on "),
    ],
)
def test_requests_that_cannot_be_met(
    words: str, status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["roofline", *words.replace("{}", str(tmp_path)).split()]
    assert cli.main(command) == status
    assert message in capsys.readouterr().err


def test_nothing_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"for stem, block1\.depthwise, .*--threads 1$"):
        scaling(MobileNet(), ZNVER4, Log(path=tmp_path / "none"))
    with pytest.raises(UsageError, match="at most 1024"):
        scaling(MobileNet(), ZNVER4, LOG, threads=(2000,))


@pytest.mark.parametrize("resolution", [224, 176])
def test_two_layers_in_one_that_one_thread_never_tried_are_left_apart(
    tmp_path: Path, resolution: int
) -> None:
    fused = {
        choice.workload.key
        for choice in plan(MobileNet().layers, LOG.records(), ZNVER4, 2)
        if len(choice.layers) == 2
    }
    assert fused
    records = [r for r in LOG.records() if r.threads == 2 or "separable" not in r.workload]
    database.append(tmp_path / "log", records)
    model = MobileNet(resolution=resolution)
    found = scaling(model, ZNVER4, Log(path=tmp_path / "log"), threads=(1, 2))
    assert [row["planned"]["kernels"] for row in found["rows"]] == [28, 28]
    assert not {kernel["workload"] for kernel in found["tasks"]} & fused


def clock(threads: int, vectors: int, turn: int) -> float:
    """A machine of eight cores an L3: 0.5 us a thread near, 2 afar; 20 GB/s near, 2 afar."""
    taken = 1e-6 + 0.5e-6 * (min(threads, 8) - 1) + 2e-6 * max(0, threads - 8)
    if vectors == VECTORS:
        taken += vectors * 64 * (1 / 100e9 + {0: 0, 1: 1 / 20e9, 8: 1 / 2e9}[turn])
    return taken


FAR = {"far_fork_join_s": 2e-6, "far_bytes_per_s": 2e9}


@pytest.mark.parametrize(("threads", "far"), [(2, {}), (8, {}), (9, FAR), (16, FAR)])
def test_costs_are_what_the_clock_tells(threads: int, far: dict[str, float]) -> None:
    expected = {"fork_join_s": 0.5e-6, "near_bytes_per_s": 20e9} | far
    assert costs(clock, threads, 8, VECTORS * 64) == pytest.approx(expected)
    assert asdict(Cores(**expected)).items() >= expected.items()


def test_a_clock_that_tells_nonsense() -> None:
    with pytest.raises(GateError, match=r"near_bytes_per_s is of -?0 µs; .*; try again"):
        costs(lambda threads, vectors, turn: 1e-6 * threads, 2, 8, VECTORS * 64)


@pytest.mark.parametrize(("name", "value"), [("can_run", False), ("cores", 1)])
def test_a_machine_that_cannot_tell(
    name: str, value: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(x86, name, lambda *_: value)
    assert cli.main([*COMMAND, "--probe"]) == 3
    assert "cannot run code for znver4 on several cores; expected" in capsys.readouterr().err


def test_a_probe_that_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "TIMEOUT_S", 0.0)
    with pytest.raises(
        SetupError, match=r"what cores cost one another failed: no answer after 0 s"
    ):
        relay.measure(x86.host(), 2, 8)


def test_what_the_probe_tells_replaces_assumptions(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"fork_join_s": 9e-6, "near_bytes_per_s": 5e9}
    monkeypatch.setattr(x86, "can_run", lambda *_: True)
    monkeypatch.setattr(x86, "cores", lambda: 16)
    monkeypatch.setattr(relay, "measure", lambda target, threads, shared: told)
    probed = scaling(MobileNet(), ZNVER4, LOG, threads=(1, 8), probe=True)
    assert probed["cores"] == asdict(Cores(**told))
    assert {name for name, source in probed["sources"].items() if "now" in source} == set(told)
    planned = probed["rows"][1]["planned"]
    forked_s = planned["kernels"] * 7 * 9e-6
    assert planned["terms"]["fork_join_s"] == pytest.approx(forked_s, rel=0.1)


@pytest.mark.slow
def test_this_machine_can_be_probed() -> None:
    if x86.cores() < 2:
        pytest.skip("one core")
    seconds = Worker(2)
    try:
        for turn in (0, 1):
            assert 0 < seconds.call(relay._copy_s, x86.host(), 2, 8, turn, timeout_s=60) < 1
    finally:
        seconds.stop()


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_thread_reads_what_the_one_so_far_on_has_written(turn: int) -> None:
    import tvm

    target, shape = x86.host(), kernels_relay.shape(x86.host(), 3, 4)
    x = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    y = tvm.runtime.tensor(np.zeros_like(x))
    copy = tvm.compile(kernels_relay.lower(target, 3, 4, turn), target=target.tvm())["main"]
    copy(tvm.runtime.tensor(x), y)
    np.testing.assert_array_equal(y.numpy(), np.roll(x, -turn, axis=0) / 2 + 1)
