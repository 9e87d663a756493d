"""Winners measured again on simulated machines: noise is no regression, a regression no noise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from kernels import kernel, kernels_for
from kernels.space import Config
from kernels.version import version
from kernels.workload import Workload, moved_bytes
from targets import machines
from tune import cli, database, pipeline
from tune.database import Record
from tune.errors import GateError, LogError
from tune.mobilenet import MobileNet
from tune.pipeline import verifying
from tune.regression import LEAST, MOST, judge
from tune.runners.local import FINAL, TRIAL
from tune.runners.protocol import Entry, Outcome
from tune.runners.samples import agree

HOST = machines("x86").DEVICES["znver4"]
MODEL = MobileNet(alpha=0.25)
WORKLOADS = tuple(dict.fromkeys(layer.workload for layer in MODEL.layers))
PEAK_FLOPS = 1e11
PEAK_RUNS = 15  # of which the local runner tells the best
TRUE_S = {workload.key: 2e-5 * (1 + index) for index, workload in enumerate(WORKLOADS)}
SLOWED = MODEL.layers[4]  # block2.pointwise


class Simulated:
    """A machine that is as slow as it pleases, behind the local runner's own rules.

    noise   company adds |N(0, noise)| to the logarithm of every sample
    drift   standard deviation of the logarithm of the machine's speed, which changes in time
    speed   of the machine, 1 as it was when records were made
    slowed  how many times longer each kernel takes
    memory_bytes_per_s  what its memory gives
    """

    trial, final, threads, at_once, fuses = TRIAL, FINAL, 1, 1, True

    def __init__(
        self,
        seed: int = 0,
        noise: float = 0.0,
        drift: float = 0.0,
        speed: float = 1.0,
        slowed: dict[str, float] | None = None,
        broken: dict[str, str] | None = None,
        memory_bytes_per_s: float = math.inf,
    ) -> None:
        self._memory_bytes_per_s = memory_bytes_per_s
        self._random = random.Random(seed)
        self._noise, self._drift, self._speed = noise, drift, speed
        self._slowed, self._broken = slowed or {}, broken or {}
        self._state = 0.0
        self.calls: list[str] = []

    def __enter__(self) -> Simulated:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("closed")

    def peak_flops(self, dtype: str) -> float:
        self._pass_time()
        self.calls.append("peak")
        return PEAK_FLOPS / min(self._sample(1.0) for _ in range(PEAK_RUNS))

    def memory_bytes_per_s(self) -> float:
        return self._memory_bytes_per_s

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        for entry in entries:
            yield entry, self._outcome("trial", entry.workload, entry.config)

    def expect(self, rivals: Iterable[Entry]) -> None:
        pass

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        assert [entry.workload for entry in network] == [layer.workload for layer in MODEL.layers]
        return [self._outcome("final", rival.workload, rival.config) for rival in rivals]

    def _outcome(self, stage: str, workload: Workload, config: Config) -> Outcome:
        self._pass_time()
        self.calls.append(f"{stage} {workload.key}")
        if workload.key in self._broken:
            return Outcome(config=config, error=self._broken[workload.key])
        true_s = TRUE_S[workload.key] * self._slowed.get(workload.key, 1.0)
        samples: list[float] = []
        while len(samples) < FINAL.most:
            fastest = sorted(samples)[: FINAL.rounds]
            if len(samples) >= FINAL.rounds and agree(fastest):
                break
            samples.append(self._sample(true_s))
        seconds = tuple(sorted(samples)[: FINAL.rounds])
        return Outcome(config=config, seconds=seconds, checked=True)

    def _sample(self, true_s: float) -> float:
        company = abs(self._random.gauss(0, self._noise))
        return true_s / self._speed * math.exp(company + self._state)

    def _pass_time(self) -> None:
        """The speed forgets half of itself in some ten measurements."""
        kept = 0.95
        fresh = self._random.gauss(0, self._drift) * math.sqrt(1 - kept**2)
        self._state = kept * self._state + fresh


def record(workload: Workload, **changes: Any) -> Record:
    """The default config of a workload's first kernel, as measured in the network, undisturbed."""
    name = kernels_for(workload, HOST)[0]
    fields: dict[str, Any] = {
        "workload": workload.key,
        "kernel": name,
        "kernel_version": version(name, "x86", workload.dtype),
        "config": kernel(name).space(workload, HOST).default,
        "target": "x86",
        "device": "znver4",
        "threads": 1,
        "stage": "final",
        "seconds": (TRUE_S[workload.key],) * 3,
        "error": None,
        "checked": True,
        "peak_flops": PEAK_FLOPS,
        "tvm": "0.27.0",
        "when": "2026-01-01T00:00:00+00:00",
    }
    return Record(**fields | changes)


@pytest.fixture
def log(tmp_path: Path) -> pipeline.Log:
    database.append(tmp_path / "log", [record(workload) for workload in WORKLOADS])
    return pipeline.Log(path=tmp_path / "log")


def verified(log: pipeline.Log, machine: Simulated, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"site": pipeline.Site(), "tolerance": 0.1} | options
    return pipeline.verify(
        MODEL,
        HOST,
        log,
        runner=machine,
        progress=lambda _: None,
        **given,  # type: ignore[arg-type]
    )


def slower(result: dict[str, Any]) -> list[str]:
    return [row["workload"] for row in result["rows"] if row["verdict"] == "slower"]


NOISY = {"noise": 0.2, "drift": 0.2}


def test_ten_runs_on_a_noisy_machine_raise_no_false_alarm(log: pipeline.Log) -> None:
    for seed in range(10):
        result = verified(log, Simulated(seed, **NOISY))
        assert slower(result) == []
        assert pipeline.failures(result) is None
        assert len(result["rows"]) == len(WORKLOADS)
        assert result["unverified"] == []


def test_ten_runs_on_a_noisy_machine_find_15_percent(log: pipeline.Log) -> None:
    key = SLOWED.workload.key
    for seed in range(10):
        result = verified(log, Simulated(seed, slowed={key: 1.15}, **NOISY))
        assert slower(result) == [key]
        error = pipeline.failures(result)
        assert isinstance(error, GateError)
        assert str(error).startswith(f"{SLOWED.name}: 1.")
        assert str(error).endswith(
            " times as long; expected right results in at most 1.10 times the recorded time; see "
            "what changed, or tune again: python -m tune run"
        )


def test_what_is_said_to_be_found_is_found(log: pipeline.Log) -> None:
    """With 95%: of 40 slowdowns of just that size, at most 5 may be missed."""
    reach = [row["detectable"] for row in verified(log, Simulated(99, **NOISY))["rows"]]
    assert 1.1 < median(reach) < 1.2
    key, found = SLOWED.workload.key, 0
    for seed in range(40):
        result = verified(log, Simulated(seed, slowed={key: max(reach)}, **NOISY))
        found += slower(result) == [key]
    assert found >= 35


def test_a_quiet_machine_needs_few_rounds_and_finds_less(log: pipeline.Log) -> None:
    machine = Simulated(1, noise=0.01)
    result = verified(log, machine)
    assert {row["pairs"] for row in result["rows"]} == {LEAST}
    assert max(row["detectable"] for row in result["rows"]) < 1.12
    key = SLOWED.workload.key
    assert slower(verified(log, Simulated(1, noise=0.01, slowed={key: 1.12}))) == [key]


def test_a_machine_that_is_slower_as_a_whole_has_no_regression(log: pipeline.Log) -> None:
    """Times alone would tell of one: the yardstick is what they are compared with."""
    for speed in (0.5, 2.0):
        result = verified(log, Simulated(2, noise=0.05, speed=speed))
        assert slower(result) == []
        for row in result["rows"]:
            assert row["ratio"] == pytest.approx(1, abs=0.05)
            assert row["now_s"] == pytest.approx(row["recorded_s"] / speed, rel=0.05)


def test_a_kernel_is_not_blamed_for_what_memory_takes(log: pipeline.Log) -> None:
    workload = WORKLOADS[-1]
    taken = {"memory_bytes_per_s": moved_bytes(workload) / (1.3 * TRUE_S[workload.key])}
    result = verified(log, Simulated(2, slowed={workload.key: 1.3}, **taken))
    assert slower(result) == []
    (row,) = (row for row in result["rows"] if row["workload"] == workload.key)
    assert row["ratio"] == pytest.approx(1)
    assert row["detectable"] == pytest.approx(1.3 * 1.1, rel=0.02)
    worse = verified(log, Simulated(2, slowed={workload.key: 1.3 * 1.15}, **taken))
    assert slower(worse) == [workload.key]
    assert slower(verified(log, Simulated(2, slowed={workload.key: 1.3}))) == [workload.key]


def test_each_run_follows_the_yardstick_as_its_record_was_made(log: pipeline.Log) -> None:
    alone = WORKLOADS[0]
    kept = [record(alone, stage="trial"), *(record(workload) for workload in WORKLOADS[1:])]
    log.path.unlink()
    database.append(log.path, kept)
    machine = Simulated(3)
    verified(log, machine)
    assert machine.calls.pop() == "closed"
    assert machine.calls[::2] == ["peak"] * (len(machine.calls) // 2)
    runs = machine.calls[1::2]
    assert set(runs) == {f"{one.stage} {one.workload}" for one in kept}
    first = [runs[start] for start in range(0, len(runs), len(WORKLOADS))]
    assert len(set(first)) == LEAST  # each round begins with another
    assert len(runs) == LEAST * len(WORKLOADS)


def test_a_wrong_result_fails_at_once(log: pipeline.Log) -> None:
    key = WORKLOADS[1].key
    machine = Simulated(4, broken={key: "wrong: output (0, 0) is 1; expected 2 within 0.1"})
    result = verified(log, machine)
    (row,) = (row for row in result["rows"] if row["workload"] == key)
    assert (row["verdict"], row["now_s"]) == ("failed", None)
    assert sum(call.endswith(key) for call in machine.calls) == 1
    error = pipeline.failures(result)
    assert str(error).startswith("block1.depthwise: wrong: output (0, 0) is 1; expected 2 within")


def test_tolerance_decides(log: pipeline.Log) -> None:
    machine = {"noise": 0.02, "slowed": {SLOWED.workload.key: 1.15}}
    assert slower(verified(log, Simulated(5, **machine), tolerance=0.2)) == []
    assert slower(verified(log, Simulated(5, **machine), tolerance=0.05)) != []


def test_layers_without_a_record_are_told(log: pipeline.Log) -> None:
    log.path.unlink()
    database.append(log.path, [record(workload) for workload in WORKLOADS[:-1]])
    result = verified(log, Simulated(6))
    assert result["unverified"] == ["head"]
    assert len(result["rows"]) == len(WORKLOADS) - 1


def test_nothing_to_verify(log: pipeline.Log, tmp_path: Path) -> None:
    with pytest.raises(GateError) as error:
        verified(log, Simulated(7), site=pipeline.Site(threads=2))
    assert str(error.value) == (
        f"no record in {log.path} to verify; expected measurements on znver4, threads 2, by the "
        f"present kernels; run: python -m tune log check --target x86, which tells what is wrong"
    )
    with pytest.raises(LogError):
        verified(pipeline.Log(path=tmp_path / "none"), Simulated(8))


def test_estimates_are_made_anew_once_and_compared_exactly(tmp_path: Path) -> None:
    log = pipeline.Log(path=tmp_path / "log")
    made = [record(w, estimator="instructions", stage="trial") for w in WORKLOADS]
    database.append(log.path, [replace(one, seconds=one.seconds[:1]) for one in made])
    site = pipeline.Site(estimator="instructions")
    slowed = {WORKLOADS[0].key: 1.11, WORKLOADS[1].key: 1.09}
    machine = Simulated(9, slowed=slowed)
    result = verified(log, machine, site=site)
    assert slower(result) == [WORKLOADS[0].key]
    assert machine.calls.count("peak") == len(WORKLOADS)
    assert {row["detectable"] for row in result["rows"]} == {1.1}


def test_command_prints_the_verdicts_and_fails(
    log: pipeline.Log,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = tmp_path / "result.json"
    words = ["verify", "--device", "znver4", "--threads", "1", "--alpha", "0.25"]
    words += ["--log", str(log.path), "--tolerance", "10%", "--json", str(stored)]

    def run(machine: Simulated) -> tuple[int, list[str], str]:
        monkeypatch.setattr(verifying, "runner_at", lambda site, target: machine)
        status = cli.main(words)
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()[-1]

    status, lines, told = run(Simulated(10, noise=0.02))
    assert status == 0
    assert lines[0].split() == [
        *("layer", "workload", "verdict", "then", "µs", "now", "µs", "ratio", "finds")
    ]
    assert all(line.split()[2] == "ok" for line in lines[1 : 1 + len(WORKLOADS)])
    assert lines[-2].startswith(
        "slower than 1.10 times is a regression; in this run every winner's"
    )
    assert told.startswith(f"round {LEAST} of at most {MOST}: ")

    status, lines, told = run(Simulated(10, noise=0.02, slowed={SLOWED.workload.key: 1.15}))
    assert status == 1
    assert told.startswith(f"septune: {SLOWED.name}: 1.1")
    rows = json.loads(stored.read_text())["rows"]
    assert [row["name"] for row in rows if row["verdict"] == "slower"] == [SLOWED.name]


def test_verdicts_are_no_surer_than_their_pairs() -> None:
    assert not judge([1.0, 1.0], 0.1).sure
    assert judge([1.0] * LEAST, 0.1).sure
    assert judge([1.15] * LEAST, 0.1).slower
    assert not judge([1.09] * LEAST, 0.1).slower
    few, many = (judge([0.9, 1.1] * half, 0.1) for half in (LEAST, MOST))
    assert few.error > many.error > 0
    assert few.detectable > many.detectable > 1.1
    wild = judge([0.5, 2.0, 0.6, 1.8, 0.4, 2.5], 0.1)
    assert not wild.slower
    assert not wild.sure
