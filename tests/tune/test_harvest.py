"""The harvest with a GPU that is made up: the order of its steps, what an interruption costs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kernels import KERNELS
from kernels import KINDS as MACHINES
from kernels.space import Config
from kernels.version import version
from kernels.workload import Separable, Workload, moved_bytes
from targets import machines
from tune import ceilings, cli, database, profile_cuda, suite
from tune.bench import NO_TIME
from tune.ceilings import Ceilings
from tune.errors import SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.peers import GPU_PEERS
from tune.pipeline import correctness, harvesting, records, tuning, visit
from tune.pipeline.correctness import CHECKED_AT_ONCE
from tune.pipeline.harvesting import KINDS, SETTINGS, Setting, harvest
from tune.pipeline.searches import BATCH
from tune.pipeline.tuning import FINALS_SHARE
from tune.pipeline.visit import MOST_TRIES, Visit
from tune.report.harvest import summary
from tune.runners import gpu
from tune.runners.gpu import Protocol, Turns
from tune.runners.protocol import Entry, Outcome
from tune.runners.worker import WorkerCrash

H100 = machines("cuda").DEVICES["h100"]
ONE = "batch1-float16"
STEPS = ["machine", "correctness", "ceilings", *(f"{kind}-{ONE}" for kind in KINDS)]
CEILINGS = Ceilings(
    device="a card",
    torch="2.11",
    copy_bytes_per_s=3e12,
    f16_flops=8e14,
    tf32_flops=4e14,
    f32_flops=5e13,
    node_s=1.5e-6,
)
COMPARISON = {
    "workload": "mobilenet_v1 alpha=1.0 224x224 batch=1 float16 tf",
    "threads": 1,
    "peak_gflops": 8e5,
    "floor_s": 1.4e-6,
    "load_average": 0.0,
    "device": "h100",
    "rows": [
        {
            "name": name,
            "version": "1",
            "median_s": time_s,
            "p20_s": time_s,
            "p80_s": time_s,
            "max_abs_diff": 0.01,
            "ratio_to_ours": time_s / 5e-5,
        }
        for name, time_s in (("septune", 5e-5), ("torch-eager", 1e-3))
    ],
    "absent": [{"name": "tensorrt", "reason": "tensorrt is not installed"}],
}


WHOLE_SUITE = suite.entries(H100)
ENTRIES = WHOLE_SUITE[::6]
TICK_S, BENCH_S = 0.02, 1.0
LEAST_S = {"finals": 0.5, "build": 0.5, "comparison": BENCH_S, "slow peers": BENCH_S}


class Short(MobileNet):
    """Two blocks, small ones, of which there is as much to say as of thirteen."""

    blocks = ((64, 1), (128, 2))

    @classmethod
    def of(cls, setting: Setting) -> Short:
        return cls(alpha=0.25, resolution=32, batch=setting.batch, dtype=setting.dtype)


class Clock:
    """One that only the card drives, a tick a candidate, so that no test depends on a machine."""

    now_s = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now_s


class Killed(BaseException):
    """What happens to a process from outside."""


class Card:
    """Stands in for the runner: a time for every config, the same each time."""

    threads = 1
    at_once = 1
    fuses = True
    trial = Protocol(rotate_bytes=1 << 20)
    final = Turns()
    kill_after: int | None = None  # candidates
    wrong: str | None = None  # a kernel
    broken: Callable[[str], bool] = staticmethod(lambda kernel: False)  # whether it cannot run

    def __init__(self, target: Any, builders: int, peaks: object = None) -> None:
        pass

    def __enter__(self) -> Card:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def peak_flops(self, dtype: str) -> float:
        return 8e14

    def _outcome(self, workload: Workload, kernel: str, config: Config, **more: Any) -> Outcome:
        Clock.now_s += TICK_S
        cls = type(self)
        if cls.kill_after is not None:
            cls.kill_after -= 1
            if cls.kill_after < 0:
                raise Killed
        if cls.broken(kernel):
            return Outcome(config=config, error="run: CUDAError: initialization error")
        if kernel == cls.wrong:
            return Outcome(config=config, error="wrong: output (0,) is nan")
        return Outcome(config=config, checked=True, **more)

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        for entry in entries:
            digest = hashlib.sha256(json.dumps(entry.config, sort_keys=True).encode()).digest()
            seconds = (1e-6 + moved_bytes(entry.workload) / 3e12) * (1 + digest[0] / 256)
            arguments = (entry.workload, entry.kernel, entry.config)
            yield entry, self._outcome(*arguments, seconds=(seconds,) * 5)

    def check(self, entries: Sequence[Entry]) -> Iterator[Outcome]:
        for entry in entries:
            yield self._outcome(entry.workload, entry.kernel, entry.config)

    def expect(self, rivals: Iterable[Entry]) -> None:
        pass

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        outcomes = []
        for rival in rivals:
            [(_, one)] = self.measure([rival])
            apart_s = 9e-6 if isinstance(rival.workload, Separable) else None
            outcomes.append(
                Outcome(
                    config=one.config, seconds=one.seconds, apart_s=apart_s, checked=one.checked
                )
            )
        return outcomes


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ran elsewhere, in that order."""
    done: list[str] = []

    def elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
        done.append(function.__name__)
        if function is ceilings.ceilings:
            return CEILINGS
        if function is profile_cuda.profile:
            return [{"kernel": "dw", "time_s": 2e-6, "gap_s": 1e-6}] * 15
        arguments[-1].write_bytes(b"a library")
        return {"layers": []}

    def compared(*_: Any, **options: Any) -> dict[str, Any]:
        done.append("bench")
        assert options["library"].read_bytes() == b"a library"
        Clock.now_s += BENCH_S
        return COMPARISON

    monkeypatch.setattr(machines("cuda"), "can_run", lambda target: True)
    monkeypatch.setattr(machines("cuda"), "host", lambda: H100)
    monkeypatch.setattr(gpu, "GpuRunner", Card)
    monkeypatch.setattr(Setting, "model", property(Short.of))
    monkeypatch.setattr(records, "LOGS", Path("/nowhere"))
    for module in (tuning, harvesting, visit):
        monkeypatch.setattr(module, "time", Clock)
    monkeypatch.setattr(harvesting, "_elsewhere", elsewhere)
    monkeypatch.setattr(harvesting, "bench", compared)
    monkeypatch.setattr(suite, "entries", lambda target: ENTRIES)
    monkeypatch.setattr(Card, "kill_after", None)
    monkeypatch.setattr(Card, "wrong", None)
    monkeypatch.setattr(Card, "broken", staticmethod(lambda kernel: False))
    return done


def harvested(folder: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The results, and the lines of progress."""
    lines: list[str] = []
    arguments = {"budget_s": 1.5, "only": [ONE], "progress": lines.append} | options
    return harvest(H100, folder, **arguments), lines


def begun(lines: list[str]) -> list[str]:
    return [line.removesuffix(" …") for line in lines if line.endswith(" …")]


def recorded(folder: Path) -> tuple[database.Record, ...]:
    return database.read(folder / "logs/cuda/h100.jsonl").records


def test_every_step_once_and_in_order(tmp_path: Path, calls: list[str]) -> None:
    results, lines = harvested(tmp_path)
    assert begun(lines) == STEPS
    assert results["state"]["left"] == []
    assert set(results["state"]["ended"].values()) == {None}
    assert calls == ["ceilings", "_built", "bench", "profile"]
    assert json.loads((tmp_path / "ceilings.json").read_text()) == asdict(CEILINGS)
    stages = [record.stage for record in recorded(tmp_path)]
    assert stages == sorted(stages, reverse=True)  # all trials, then all finals
    assert stages.count("trial") == results[f"tuning-{ONE}"]["trials"] > 8
    assert stages.count("final") == results[f"finals-{ONE}"]["finalists"] > 1
    assert all(record.checked and record.estimator is None for record in recorded(tmp_path))
    again, lines = harvested(tmp_path)
    assert begun(lines) == []
    assert again == results


def test_what_was_checked_is_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "kill_after", 35)
    with pytest.raises(Killed):
        harvested(tmp_path)
    journal = tmp_path / "correctness.jsonl"
    assert len(journal.read_text().splitlines()) == 35
    journal.write_text(journal.read_text() + '["pointwise/f16/n1.h')  # torn
    monkeypatch.setattr(Card, "kill_after", None)
    results, lines = harvested(tmp_path)
    assert begun(lines) == STEPS[1:]
    assert results["correctness"] == {"checked": len(ENTRIES), "failed": []}
    assert f"  32 of {len(ENTRIES) - 35} candidates checked" in lines


def journal(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "correctness.jsonl").read_text().splitlines()]


def test_where_nothing_runs_the_harvest_ends_and_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Card, "broken", staticmethod(lambda kernel: True))
        for _ in range(MOST_TRIES + 1):
            with pytest.raises(SetupError, match=r"none of .* is right on this machine.*init"):
                harvested(tmp_path)
    tried = journal(tmp_path)
    assert len(tried) <= (MOST_TRIES + 1) * CHECKED_AT_ONCE
    assert {kernel for _, kernel, *_ in tried[:CHECKED_AT_ONCE]} == {e.kernel for e in ENTRIES}
    results, lines = harvested(tmp_path)
    assert results["correctness"] == {"checked": len(ENTRIES), "failed": []}
    assert begun(lines) == STEPS[1:]


def test_what_did_not_run_is_checked_again_and_what_is_wrong_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "broken", staticmethod(lambda kernel: kernel == "triton.depthwise"))
    monkeypatch.setattr(Card, "wrong", "triton.head")
    count = sum(entry.kernel == "triton.depthwise" for entry in ENTRIES)
    results, lines = harvested(tmp_path)
    assert results["state"]["left"] == ["correctness"]
    assert results["state"]["partial"] == {"correctness": f"{count} candidates, which did not run"}
    assert f"- correctness lacks {count} candidates" in summary(results)
    assert begun(lines) == STEPS
    for number in range(MOST_TRIES):
        before = len(journal(tmp_path))
        results, lines = harvested(tmp_path)
        assert {kernel for _, kernel, *_ in journal(tmp_path)[before:]} == {"triton.depthwise"}
        assert begun(lines) == ["correctness"]
        assert results["state"]["left"] == ["correctness"] * (number < MOST_TRIES - 1)
    assert begun(harvested(tmp_path)[1]) == []


def test_what_ran_at_last_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Card, "broken", staticmethod(lambda kernel: kernel == "triton.depthwise"))
        harvested(tmp_path)
    results, _ = harvested(tmp_path)
    assert results["correctness"] == {"checked": len(ENTRIES), "failed": []}
    assert (results["state"]["left"], results["state"]["partial"]) == ([], {})


def test_a_kernel_that_was_changed_is_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "wrong", "triton.head")
    results, _ = harvested(tmp_path)
    assert {failed[1] for failed in results["correctness"]["failed"]} == {"triton.head"}
    before = len(journal(tmp_path))
    monkeypatch.setattr(Card, "wrong", None)
    monkeypatch.setattr(
        correctness,
        "version",
        lambda name, *more: "mended" if name == "triton.head" else version(name, *more),
    )
    results, lines = harvested(tmp_path)
    assert begun(lines) == ["correctness"]
    assert {kernel for _, kernel, *_ in journal(tmp_path)[before:]} == {"triton.head"}
    assert results["correctness"] == {"checked": len(ENTRIES), "failed": []}


def test_a_limit_ends_the_checks_at_once(tmp_path: Path) -> None:
    results, _ = harvested(tmp_path, limit_s=9.5 * TICK_S)
    assert len(journal(tmp_path)) == 10
    assert results["state"]["left"] == STEPS[1:]


def test_tuning_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "kill_after", len(ENTRIES) + 12)
    with pytest.raises(Killed):
        harvested(tmp_path)
    assert len(recorded(tmp_path)) == 12
    state = json.loads((tmp_path / "state.json").read_text())
    assert 0 < state["spent_s"][ONE] < 1.2
    monkeypatch.setattr(Card, "kill_after", None)
    results, lines = harvested(tmp_path)
    assert begun(lines) == STEPS[3:]
    trials = [record for record in recorded(tmp_path) if record.stage == "trial"]
    configs = [(r.workload, r.kernel, json.dumps(r.config, sort_keys=True)) for r in trials]
    assert len(configs) == len(set(configs))
    assert results["state"]["spent_s"][ONE] == pytest.approx(1.2, abs=0.4)


def test_a_limit_ends_a_command_and_another_goes_on(tmp_path: Path) -> None:
    limit_s = TICK_S * (len(ENTRIES) + 30)
    results, lines = harvested(tmp_path, budget_s=3600.0, limit_s=limit_s)
    assert begun(lines)[-1] == f"tuning-{ONE}"
    assert results["state"]["left"] == STEPS[3:]
    assert f"not done yet: {STEPS[3]}, " in summary(results)
    results, lines = harvested(tmp_path, budget_s=results["state"]["spent_s"][ONE] + 1.0)
    assert begun(lines) == STEPS[3:]
    assert results["state"]["left"] == []
    assert set(results["state"]["ended"].values()) == {None}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """As if a step took half a second at least; how long those take that no test measures."""
    monkeypatch.setattr(harvesting, "LEAST_S", dict(LEAST_S))
    monkeypatch.setattr(harvesting, "LEAST_SLICE_S", 0.1)
    return len(ENTRIES) * TICK_S


def test_tuning_leaves_time_for_the_first_comparison(
    tmp_path: Path, calls: list[str], quick: float
) -> None:
    results, lines = harvested(tmp_path, budget_s=3600.0, limit_s=quick + 2.0 + 0.5)
    assert results["state"]["spent_s"][ONE] == pytest.approx(0.5, abs=2 * BATCH * TICK_S)
    assert results[f"comparison-{ONE}"] == COMPARISON
    assert STEPS[3] in results["state"]["left"]
    assert f"comparison-{ONE}" not in results["state"]["left"]
    calls.clear()
    results, lines = harvested(tmp_path, budget_s=3600.0, limit_s=3.0)
    assert results["state"]["spent_s"][ONE] == pytest.approx(3.5, abs=3 * BATCH * TICK_S)
    assert calls == []
    budget_s = (results["state"]["spent_s"][ONE] + 0.5) / (1 - FINALS_SHARE)
    results, lines = harvested(tmp_path, budget_s=budget_s)
    assert begun(lines) == STEPS[3:]  # with what has been found since
    assert results["state"]["left"] == []


def test_where_a_comparison_does_not_fit_in_tuning_has_all_the_time(
    tmp_path: Path, calls: list[str], quick: float
) -> None:
    results, _ = harvested(tmp_path, budget_s=3600.0, limit_s=quick + 1.0)
    assert results["state"]["spent_s"][ONE] == pytest.approx(1.0, abs=2 * BATCH * TICK_S)
    assert calls == ["ceilings"]


def test_a_comparison_waits_for_a_call_with_enough_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str], quick: float
) -> None:
    monkeypatch.setitem(harvesting.LEAST_S, "comparison", 100.0)
    with monkeypatch.context() as patch:  # trials and finals are given what a comparison needs
        patch.setattr(harvesting, "_slice_s", lambda *_: 0.5)
        results, _ = harvested(tmp_path, limit_s=quick + 5.0)
    assert "bench" not in calls
    assert f"comparison-{ONE}" in results["state"]["left"]
    harvested(tmp_path, limit_s=30.0)  # or else none ever would
    assert "bench" in calls


def test_finals_whose_time_is_up_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str], quick: float
) -> None:
    monkeypatch.setitem(harvesting.LEAST_S, "finals", 5 * TICK_S)
    results, _ = harvested(tmp_path, budget_s=0.5)
    visits, met = 1, 0
    while results["state"]["left"]:
        assert results["state"]["left"] == [f"finals-{ONE}"]
        assert calls[-2:] == ["bench", "profile"]  # numbers there are all the same
        stages = [record.stage for record in recorded(tmp_path)]
        assert stages.count("final") > met
        visits, met = visits + 1, stages.count("final")
        results, lines = harvested(tmp_path, budget_s=0.5)
        assert begun(lines)[0] == f"finals-{ONE}"
    assert visits > 2
    assert results[f"finals-{ONE}"] == {"finalists": met}


def test_a_comparison_without_all_is_kept_and_made_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    late = {"name": "torch-max-autotune", "reason": f"{NO_TIME}: no answer to prepare after 9 s"}
    deadlines = []

    def hasty(*_: Any, **options: Any) -> dict[str, Any]:
        deadlines.append(options["deadline"])
        return COMPARISON | {"absent": [late]}

    only, start = [ONE, "batch8-float16"], Clock.now_s
    with monkeypatch.context() as patch:
        patch.setattr(harvesting, "bench", hasty)
        results, _ = harvested(tmp_path, only=only, limit_s=1000.0)
        assert deadlines == [start + 1000.0] * 3
        assert results[f"comparison-{ONE}"]["absent"] == [late]
        lacking = {f"comparison-{name}": "torch-max-autotune" for name in only}
        assert results["state"]["partial"] == lacking
        assert results["state"]["left"] == list(lacking)
        (tmp_path / f"profile-{only[1]}.json").unlink()
        state = json.loads((tmp_path / "state.json").read_text())
        del state["ended"][f"profile-{only[1]}"]
        (tmp_path / "state.json").write_text(json.dumps(state))
        _, lines = harvested(tmp_path, only=only)
        assert begun(lines) == [f"profile-{only[1]}", *lacking]
    results, _ = harvested(tmp_path, only=only)
    assert results[f"comparison-{ONE}"] == COMPARISON
    assert (results["state"]["left"], results["state"]["partial"]) == ([], {})


Asked = list[tuple[int, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, quick: float) -> Asked:
    """The batch of each comparison, and the peers that it was asked for."""
    done: Asked = []

    def compared(model: MobileNet, *_: Any, peers: Any, **options: Any) -> dict[str, Any]:
        done.append((model.batch, peers))
        Clock.now_s += BENCH_S
        return COMPARISON

    monkeypatch.setattr(harvesting, "bench", compared)
    return done


QUICK = [name for name, peer in GPU_PEERS.items() if not peer.slow]
SLOW = [name for name, peer in GPU_PEERS.items() if peer.slow]


def test_slow_peers_wait_until_every_network_was_compared(tmp_path: Path, asked: Asked) -> None:
    only = [ONE, "batch256-float16", "batch8-float16"]
    results, lines = harvested(tmp_path, only=only, limit_s=1000.0)
    assert SLOW
    assert asked == [(1, QUICK), (256, QUICK), (8, None), (1, None), (256, None)]
    assert begun(lines)[-3:] == [f"profile-{only[2]}", *(f"comparison-{name}" for name in only[:2])]
    assert (results["state"]["left"], results["state"]["partial"]) == ([], {})


def test_slow_peers_wait_for_a_call_with_enough_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    only = [ONE, "batch8-float16"]
    monkeypatch.setitem(harvesting.LEAST_S, "slow peers", 1000.0)
    results, _ = harvested(tmp_path, only=only, limit_s=20.0)
    assert asked == [(1, QUICK), (8, None)]
    assert results["state"]["left"] == [f"comparison-{ONE}"]
    assert results["state"]["partial"] == {f"comparison-{ONE}": ", ".join(SLOW)}
    assert f"- comparison-{ONE} lacks torch-compile, " in summary(results)
    results, _ = harvested(tmp_path, only=only, limit_s=20.0)  # which does nothing else
    assert asked[2:] == [(1, None)]
    assert results["state"]["left"] == []


def test_slow_peers_wait_for_nobody_whose_comparison_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    compared = vars(harvesting)["bench"]

    def fails(model: MobileNet, *arguments: Any, **options: Any) -> Any:
        if model.batch == 8:
            raise UsageError("no library")
        return compared(model, *arguments, **options)

    monkeypatch.setattr(harvesting, "bench", fails)
    results, _ = harvested(tmp_path, only=[ONE, "batch8-float16"])
    assert asked == [(1, QUICK), (1, None)]
    assert results["state"]["left"] == ["comparison-batch8-float16"]


def test_no_slow_peer_starts_while_another_network_waits_for_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    only = [ONE, "batch8-float16"]
    with monkeypatch.context() as patch:
        patch.setattr(Visit, "left_s", lambda visit: 0.1 if asked else 1000.0)
        results, _ = harvested(tmp_path, only=only, limit_s=1000.0)
    assert asked == [(1, QUICK)]
    assert results["state"]["left"][0] == f"comparison-{ONE}"
    harvested(tmp_path, only=only)
    assert asked[1:] == [(8, None), (1, None)]


def test_what_has_met_is_kept_when_the_rest_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kills(*_: Any, keep: Callable[[Any], None], **options: Any) -> Any:
        keep(COMPARISON)
        raise Killed

    monkeypatch.setattr(harvesting, "bench", kills)
    for _ in range(MOST_TRIES):
        with pytest.raises(Killed):
            harvested(tmp_path)
    results, lines = harvested(tmp_path)
    assert begun(lines) == [f"profile-{ONE}"]
    assert results[f"comparison-{ONE}"] == COMPARISON


def test_a_library_that_did_not_come_along_is_built_again(tmp_path: Path, calls: list[str]) -> None:
    harvested(tmp_path)
    (tmp_path / f"mobilenet_v1-{ONE}.so").unlink()
    assert begun(harvested(tmp_path)[1]) == []
    state = json.loads((tmp_path / "state.json").read_text())
    del state["ended"][f"profile-{ONE}"]
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert begun(harvested(tmp_path)[1]) == [f"build-{ONE}", f"profile-{ONE}"]


def test_a_step_that_fails_is_tried_again_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    def crashes(*_: Any) -> Any:
        raise WorkerCrash("worker process ended with status -11")

    with monkeypatch.context() as patch:
        patch.setattr(harvesting, "_ceilings", crashes)
        for number in range(MOST_TRIES):
            results, lines = harvested(tmp_path)
            assert results["state"]["ended"]["ceilings"].startswith("WorkerCrash: worker")
            assert results["state"]["left"] == (["ceilings"] if number < MOST_TRIES - 1 else [])
            assert begun(lines) == (STEPS if number == 0 else ["ceilings"])
    results, lines = harvested(tmp_path)
    assert begun(lines) == []
    assert "ceilings failed: WorkerCrash: worker process" in summary(results)


def test_a_step_that_kills_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(harvesting, "_ceilings", killed)
        for _ in range(MOST_TRIES):
            with pytest.raises(Killed):
                harvested(tmp_path)
        results, lines = harvested(tmp_path)
    assert begun(lines) == STEPS[3:]
    assert results["state"]["ended"]["ceilings"] == f"cut off {MOST_TRIES} times"


def test_a_wrong_kernel_is_reported_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Card, "wrong", "triton.separable")
    asked = ["harvest", "--budget", "2s", "--only", ONE, "-o", str(tmp_path)]
    asked += ["--kernel", "triton.depthwise,triton.stem", "--kernel", "triton.head"]
    assert cli.main(asked) == 1
    printed, told = capsys.readouterr()
    assert "triton.separable separable/f16" not in told.splitlines()[-1]
    trials = [record for record in recorded(tmp_path) if record.stage == "trial"]
    kinds = {f"triton.{kind}" for kind in ("depthwise", "head", "stem")}
    assert {record.kernel for record in trials} == kinds
    assert told.splitlines()[-1].startswith("septune: correctness failed; expected ")
    assert "wrong: output (0,) is nan" in printed
    assert (tmp_path / "summary.md").read_text().strip() in printed


def test_the_summary_says_what_was_found(tmp_path: Path) -> None:
    results, _ = harvested(tmp_path)
    for row in results[f"profile-{ONE}"]["layers"]:
        row["time_s"] = 2e-6
    results[f"profile-{ONE}"]["layers"][1] |= {"apart_s": 3e-6, "fused_s": 4e-6}
    results[f"profile-{ONE}"]["layers"][3] |= {"apart_s": 4e-6, "fused_s": 3e-6}
    text = summary(results)
    checked = results["correctness"]["checked"]
    assert f"{checked} of {checked} candidates compute" in text
    assert "copies 3.00 TB/s; products of matrices 800 TFLOP/s in float16" in text
    layers = results[f"profile-{ONE}"]["layers"]
    assert [row["name"] for row in layers][1::2] == ["block1.depthwise", "block2.depthwise", "head"]
    assert "\n1 of 2 blocks are faster as one kernel: block2.\n" in text
    assert f"The plan's kernels, each alone: {2.0 * len(layers):.1f} µs." in text
    assert "The same in the network: 45.0 µs, of them 15.0 µs between its 15 kernels." in text
    assert re.search(r"torch-eager +1 +1\.00 +1\.00 +1\.00 +20\.00", text)
    assert re.search(r"septune +1 +0\.0500 ", text)
    assert "absent: tensorrt: tensorrt is not installed" in text
    assert "failed:" not in text
    assert "not done yet" not in text


def test_trials_are_of_the_chosen_kernels_and_finals_of_all_that_are_known(tmp_path: Path) -> None:
    before, after, chosen = tmp_path / "before", tmp_path / "after", "triton.pointwise"
    harvested(before)
    known = [record for record in recorded(before) if record.stage == "trial"]
    assert {record.kernel for record in known} > {chosen}
    database.append(after / "logs/cuda/h100.jsonl", known)
    harvested(after, kernels=[chosen])
    found = recorded(after)[len(known) :]
    assert {record.kernel for record in found if record.stage == "trial"} == {chosen}
    assert {record.kernel for record in found if record.stage == "final"} > {chosen}
    with pytest.raises(UsageError, match=r"'triton\.pontwise' is not known; expected one of "):
        harvested(tmp_path / "none", kernels=["triton.pontwise"])
    assert not (tmp_path / "none").exists()


def test_shares_of_chosen_settings_make_up_the_whole() -> None:
    assert sum(each.share for each in SETTINGS) == pytest.approx(1)
    chosen = harvesting._chosen(["batch1-float16", "batch256-float16"])
    assert [each.share for each in chosen] == [0.5, 0.5]
    assert {each.batch for each in SETTINGS} == {1, 8, 64, 256}
    with pytest.raises(UsageError, match="'batch2-float16' is not known; expected some of batch1"):
        harvesting._chosen(["batch2-float16"])


def test_without_that_gpu_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines("cuda"), "can_run", lambda target: False)
    with pytest.raises(SetupError, match="cannot run code for h100"):
        harvested(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_profile_rows_are_medians_of_the_same_kernels() -> None:
    spans = [
        (name, run + start, run + start + length * (1 + (run == 1)))
        for run in range(3)
        for name, start, length in (("dw", 0.0, 0.1), ("pw", 0.3, 0.2))
    ]
    first, second = profile_cuda.rows(spans[::-1], 3)
    assert (first["kernel"], second["kernel"]) == ("dw", "pw")
    assert first["time_s"] == pytest.approx(0.1)
    assert first["gap_s"] == 0.0
    assert second["time_s"] == pytest.approx(0.2)
    assert second["gap_s"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="5 kernels in 3 inferences"):
        profile_cuda.rows(spans[:5], 3)
    with pytest.raises(ValueError, match="expected the same ones in each"):
        profile_cuda.rows([*spans[:5], ("dw", 2.3, 2.5)], 3)


def test_overlapping_kernels_count_for_what_they_add() -> None:
    one = (("dw", 0.0, 1.0), ("pw", 0.4, 1.5), ("pool", 0.5, 1.25), ("head", 2.0, 3.0))
    spans = [(name, 9 * run + start, 9 * run + end) for run in range(3) for name, start, end in one]
    found = profile_cuda.rows(spans, 3)
    assert [row["time_s"] for row in found] == pytest.approx([1.0, 0.5, 0.0, 1.0])
    assert [row["gap_s"] for row in found] == pytest.approx([0.0, 0.0, 0.0, 0.5])
    assert sum(row["time_s"] + row["gap_s"] for row in found) == pytest.approx(3.0)


def test_the_suite_has_every_kernel_default_and_others_in_both_dtypes() -> None:
    entries = WHOLE_SUITE
    for name in (name for name in KERNELS if "cuda" in MACHINES[name.rpartition(".")[0]]):
        mine = [each for each in entries if each.kernel == name]
        dtypes = {each.workload.dtype for each in mine}
        assert dtypes, f"{name} is not in the suite"
        for dtype in dtypes:
            some = [each for each in mine if each.workload.dtype == dtype]
            assert len({json.dumps(each.config, sort_keys=True) for each in some}) >= 3
            assert len({each.workload for each in some}) >= 2
    assert {each.workload.dtype for each in entries} == {"float32", "float16"}
    assert len(entries) < 1500
    assert len({(e.workload.key, e.kernel, json.dumps(e.config)) for e in entries}) == len(entries)
