"""The harvest with a GPU that is made up: the order of its steps, what an interruption costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kernels import KERNELS, KINDS
from kernels.space import Config
from kernels.workload import Separable, Workload, moved_bytes
from targets import machines
from tune import ceilings, cli, database, profile, suite
from tune.ceilings import Ceilings
from tune.errors import SetupError, UsageError
from tune.pipeline import harvesting, tuning
from tune.pipeline.harvesting import MOST_TRIES, SETTINGS, harvest
from tune.report.harvest import KINDS as KINDS_OF_STEPS
from tune.report.harvest import summary
from tune.runners import gpu
from tune.runners.gpu import Protocol, Turns
from tune.runners.protocol import Entry, Outcome
from tune.runners.worker import WorkerCrash

H100 = machines("cuda").DEVICES["h100"]
ONE = "batch1-float16"
STEPS = ["machine", "correctness", "ceilings", *(f"{kind}-{ONE}" for kind in KINDS_OF_STEPS)]
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


ENTRIES = suite.entries(H100)[::2]


TICK_S = 0.02


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

    def __init__(self, target: Any, builders: int) -> None:
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
        if kernel == cls.wrong:
            return Outcome(config=config, error="wrong: output (0,) is nan")
        return Outcome(config=config, checked=True, **more)

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        for entry in entries:
            noise = hash(json.dumps(entry.config, sort_keys=True)) % 97 / 97
            seconds = (1e-6 + moved_bytes(entry.workload) / 3e12) * (1 + noise)
            arguments = (entry.workload, entry.kernel, entry.config)
            yield entry, self._outcome(*arguments, seconds=(seconds,) * 5)

    def check(self, entries: Sequence[Entry]) -> Iterator[Outcome]:
        for entry in entries:
            yield self._outcome(entry.workload, entry.kernel, entry.config)

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
        if function is profile.profile:
            return [{"kernel": "dw", "time_s": 2e-6, "gap_s": 1e-6}] * 15
        arguments[-1].write_bytes(b"a library")
        return {"layers": []}

    def compared(*_: Any, peers: Sequence[str], **options: Any) -> dict[str, Any]:
        done.append(f"bench {len(peers)}")
        assert options["library"].read_bytes() == b"a library"
        return COMPARISON

    monkeypatch.setattr(machines("cuda"), "can_run", lambda target: True)
    monkeypatch.setattr(machines("cuda"), "host", lambda: H100)
    monkeypatch.setattr(gpu, "GpuRunner", Card)
    for module in (tuning, harvesting):
        monkeypatch.setattr(module, "time", Clock)
    monkeypatch.setattr(harvesting, "_elsewhere", elsewhere)
    monkeypatch.setattr(harvesting, "bench", compared)
    monkeypatch.setattr(suite, "entries", lambda target: ENTRIES)
    monkeypatch.setattr(Card, "kill_after", None)
    monkeypatch.setattr(Card, "wrong", None)
    return done


def harvested(folder: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The results, and the lines of progress."""
    lines: list[str] = []
    arguments = {"budget_s": 1.5, "only": [ONE], "progress": lines.append} | options
    return harvest(H100, folder, **arguments), lines


def begun(lines: list[str]) -> list[str]:
    return [line.removesuffix(" …") for line in lines if line.endswith(" …")]


def records(folder: Path) -> tuple[database.Record, ...]:
    return database.read(folder / "logs/cuda/h100.jsonl").records


def test_every_step_once_and_in_order(tmp_path: Path, calls: list[str]) -> None:
    results, lines = harvested(tmp_path)
    assert begun(lines) == STEPS
    assert results["state"]["left"] == []
    assert set(results["state"]["ended"].values()) == {None}
    assert calls == ["ceilings", "_built", "bench 9", "profile"]
    assert json.loads((tmp_path / "ceilings.json").read_text()) == asdict(CEILINGS)
    stages = [record.stage for record in records(tmp_path)]
    assert stages == sorted(stages, reverse=True)  # all trials, then all finals
    assert stages.count("trial") == results[f"tuning-{ONE}"]["trials"] > 8
    assert stages.count("final") == results[f"finals-{ONE}"]["finalists"] > 1
    assert all(record.checked and record.estimator is None for record in records(tmp_path))
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


def test_tuning_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Card, "kill_after", len(ENTRIES) + 12)
    with pytest.raises(Killed):
        harvested(tmp_path)
    assert len(records(tmp_path)) == 12
    state = json.loads((tmp_path / "state.json").read_text())
    assert 0 < state["spent_s"][ONE] < 1.2
    monkeypatch.setattr(Card, "kill_after", None)
    results, lines = harvested(tmp_path)
    assert begun(lines) == STEPS[3:]
    trials = [record for record in records(tmp_path) if record.stage == "trial"]
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


def test_a_comparison_that_is_cut_off_leaves_out_who_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    def killed(*_: Any, **options: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(harvesting, "bench", killed)
        for _ in range(MOST_TRIES - 1):
            with pytest.raises(Killed):
                harvested(tmp_path)
    harvested(tmp_path)
    assert [call for call in calls if call.startswith("bench")] == ["bench 8"]


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
    assert cli.main(asked) == 1
    printed, told = capsys.readouterr()
    assert "triton.separable separable/f16" not in told.splitlines()[-1]
    assert told.splitlines()[-1].startswith("septune: correctness failed; expected ")
    assert "wrong: output (0,) is nan" in printed
    assert (tmp_path / "summary.md").read_text().strip() in printed


def test_the_summary_says_what_was_found(tmp_path: Path) -> None:
    results, _ = harvested(tmp_path)
    text = summary(results)
    checked = results["correctness"]["checked"]
    assert f"{checked} of {checked} candidates compute" in text
    assert "copies 3.00 TB/s; products of matrices 800 TFLOP/s in float16" in text
    layers = results[f"profile-{ONE}"]["layers"]
    fused = [row for row in layers if "." not in row["name"] and row["name"].startswith("block")]
    assert re.search(rf"\n{len(fused)} of \d+ blocks are faster as one kernel\.\n", text)
    assert "In the network: 15 kernels, 30.0 µs, and 15.0 µs between them." in text
    assert re.search(r"torch-eager +1 +1\.00 +1\.00 +1\.00 +20\.00", text)
    assert re.search(r"septune +1 +0\.0500 ", text)
    assert "absent: tensorrt: tensorrt is not installed" in text
    assert "failed:" not in text
    assert "not done yet" not in text


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
    first, second = profile.rows(spans[::-1], 3)
    assert (first["kernel"], second["kernel"]) == ("dw", "pw")
    assert first["time_s"] == pytest.approx(0.1)
    assert first["gap_s"] == 0.0
    assert second["time_s"] == pytest.approx(0.2)
    assert second["gap_s"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="5 kernels in 3 inferences"):
        profile.rows(spans[:5], 3)
    with pytest.raises(ValueError, match="expected the same ones in each"):
        profile.rows([*spans[:5], ("dw", 2.3, 2.5)], 3)


def test_the_suite_has_every_kernel_default_and_others_in_both_dtypes() -> None:
    entries = suite.entries(H100)
    for name in (name for name in KERNELS if "cuda" in KINDS[name.rpartition(".")[0]]):
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
