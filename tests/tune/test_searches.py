"""What is searched for one network or several, and in which order."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from kernels import kernel
from kernels.space import Config, Knob, Space
from kernels.workload import Depthwise, Separable, Workload, flops
from targets import machines
from tune import database
from tune.mobilenet import MobileNet
from tune.pipeline.recorder import Recorder
from tune.pipeline.searches import (
    FINALISTS,
    Search,
    batch,
    chosen,
    finalists,
    in_time,
    searches_of,
    stage,
    weights,
)
from tune.runners.protocol import Outcome

ZNVER4 = machines("x86").DEVICES["znver4"]
LARGE, SMALL = MobileNet(alpha=0.5, resolution=64), MobileNet(alpha=0.25, resolution=32)


def test_one_network_counts_its_layers() -> None:
    found = weights([LARGE.layers], fuses=False)
    layers = [layer.workload for layer in LARGE.layers]
    assert found == {workload: layers.count(workload) for workload in layers}
    fused = weights([LARGE.layers], fuses=True)
    assert {w: n for w, n in fused.items() if not isinstance(w, Separable)} == found
    assert sum(n for w, n in fused.items() if isinstance(w, Separable)) == len(LARGE.blocks)


def test_a_share_of_a_small_network_counts_as_much_as_of_a_large_one() -> None:
    found = weights([LARGE.layers, SMALL.layers], fuses=False)
    work = [sum(flops(layer.workload) for layer in model.layers) for model in (LARGE, SMALL)]
    for model, own in zip((LARGE, SMALL), work, strict=True):
        stem = model.layers[0].workload
        assert found[stem] * flops(stem) / work[0] == pytest.approx(flops(stem) / own)
    shared = {layer.workload for layer in LARGE.layers} & {layer.workload for layer in SMALL.layers}
    for workload in shared:
        alone = [weights([model.layers], fuses=False)[workload] for model in (LARGE, SMALL)]
        assert found[workload] == pytest.approx(alone[0] + alone[1] * work[0] / work[1])


def test_finals_are_in_a_network_that_has_the_workload() -> None:
    networks = [LARGE.layers, SMALL.layers]
    assert stage(networks, LARGE.layers[5].workload) is networks[0]
    assert stage(networks, SMALL.layers[-1].workload) is networks[1]


def test_two_layers_in_one_wait_for_the_two() -> None:
    depthwise, pointwise = (layer.workload for layer in SMALL.layers[1:3])
    together = Separable.of(depthwise, pointwise)
    assert together is not None
    searches = [
        Search(
            workload=workload,
            kernel="te.pointwise",
            weight=1.0,
            space=Space(knobs=(Knob("A", tuple(range(99)), 0),), constraints=()),
            seeds=[],
        )
        for workload in (together, depthwise, pointwise)
    ]

    def next_one(*candidates: Search) -> Search | None:
        return chosen(candidates, peak_flops=1e11, most=96, worthwhile=0.001)

    fused, *apart = searches
    assert next_one(*searches) is apart[0]
    for search in apart:
        search.history += [({"A": number}, 1e-4) for number in range(8)]
    assert next_one(*searches) is fused
    fused.history += [({"A": number}, 9e-4) for number in range(8)]
    assert next_one(*searches) is apart[0]  # far behind, it is not worth more trials
    alone = replace(fused, history=[])
    assert next_one(alone) is alone  # where nobody searches the two


def test_a_rival_of_a_quieter_day_is_measured_anew() -> None:
    """Or what is slow today by itself would seem worse than what was measured then."""
    depthwise, pointwise = (layer.workload for layer in SMALL.layers[1:3])
    together = Separable.of(depthwise, pointwise)
    assert together is not None

    def search(workload: Workload, kernel: str, anchor: int | None, *times: float | None) -> Search:
        return Search(
            workload=workload,
            kernel=kernel,
            open=kernel == "te.separable",
            anchor=None if anchor is None else {"A": anchor},
            older=0 if anchor is None else len(times),
            weight=1.0,
            space=Space(knobs=(Knob("A", tuple(range(9)), 0),), constraints=()),
            seeds=[{"A": 8}],
            expected_s=2e-4,
            history=[({"A": number}, time_s) for number, time_s in enumerate(times)],
        )

    searches = [
        search(together, "te.separable", None),
        search(together, "te.pointwise", 2, 4e-4, None, 3e-4),
        search(depthwise, "te.pointwise", 0, 2e-4),  # of which no search knows that goes on
    ]
    rival = searches[1]
    asked = batch(searches, 1e11, 96, 0.001, at_once=1)
    found = [(entry.workload, entry.kernel, entry.config["A"]) for entry in asked]
    assert found == [(together, "te.separable", 8), (together, "te.pointwise", 2)]
    assert len(batch(searches, 1e11, 96, 0.001, at_once=1, left=1)) == 1

    rival.learn({"A": 5}, 1e-4)  # of today, and sooner there than the anchor
    rival.learn({"A": 2}, 6e-4)
    assert rival.history == [({"A": 0}, 8e-4), ({"A": 1}, None), ({"A": 2}, 6e-4), ({"A": 5}, 1e-4)]
    assert len(batch(searches, 1e11, 96, 0.001, at_once=1)) == 1
    failing = search(together, "te.pointwise", 0, 2e-4)
    failing.learn({"A": 0}, None)
    assert (failing.history, failing.anchor) == ([({"A": 0}, 2e-4)], None)


def test_builders_that_would_be_idle_work_for_the_next_searches() -> None:
    searches = [
        Search(
            workload=layer.workload,
            kernel="te.pointwise",
            weight=1.0,
            space=Space(knobs=(Knob("A", tuple(range(5)), 0),), constraints=()),
            seeds=[{"A": 0}, {"A": 1}],
        )
        for layer in SMALL.layers[1:6:2]
    ]

    def asked(at_once: int, left: int | None = None) -> list[list[Config]]:
        """Of each search."""
        found = batch(searches, 1e11, 96, 0.001, at_once=at_once, left=left)
        assert all(entry.workload == search.workload for entry, search in found.items())
        return [[e.config for e, s in found.items() if s is search] for search in searches]

    first = [{"A": 0}, {"A": 1}]
    assert sorted(map(len, asked(1))) == [0, 0, 2]
    assert sorted(map(len, asked(3))) == [0, 2, 2]
    assert asked(6) == [first] * 3
    assert sorted(map(len, asked(6, left=3))) == [0, 1, 2]
    assert sorted(map(len, asked(12))) == [4, 4, 4]
    for search in searches:
        search.history += [({"A": number}, 1e-4) for number in range(5)]
    assert asked(99) == [[]] * 3


def searching(workload: Workload | None, kernel: str = "te.pointwise", **fields: Any) -> Search:
    assert workload is not None
    return Search(
        workload=workload,
        kernel=kernel,
        weight=1.0,
        space=Space(knobs=(Knob("A", tuple(range(99)), 0),), constraints=()),
        seeds=[{"A": 7}],
        **fields,
    )


def test_where_something_is_expected_a_search_grows_from_one_trial() -> None:
    [one] = searches = [searching(SMALL.layers[2].workload, expected_s=1e-4)]
    counts = []
    while len(one.history) < 16:
        found = batch(searches, 1e11, 96, 0.001, at_once=1)
        counts.append(len(found))
        one.history += [(entry.config, 1e-4 - 1e-8 * len(one.history)) for entry in found]
    assert counts == [1, 1, 2, 4, 8]
    assert one.history[0][0] == {"A": 7}


def test_what_is_measured_tells_how_far_expectations_are_off() -> None:
    workload = SMALL.layers[2].workload
    first, second = (
        searching(workload, f"te.{name}", expected_s=expected_s)
        for name, expected_s in (("pointwise", 1e-4), ("avx.pointwise", 1.2e-4))
    )
    alone = searching(SMALL.layers[4].workload, expected_s=0.1e-4)

    def next_one() -> Search | None:
        return chosen([first, second, alone], peak_flops=1e11, most=96, worthwhile=0.001)

    assert next_one() is first
    first.history.append(({"A": 7}, 3e-4))
    assert next_one() is first  # 0.09 ms may be saved, and by the second 0.05 of 0.36
    first.history += [({"A": number}, 3e-4) for number in range(7)]
    assert next_one() is second


def test_others_tell_how_far_the_expectation_of_a_workload_is_off() -> None:
    """Or on a slow machine what has been measured seems the better worth measuring again."""
    measured, fresh = (searching(SMALL.layers[place].workload, expected_s=1e-4) for place in (2, 4))
    measured.history += [({"A": number}, 9e-4) for number in range(2)]
    assert chosen([measured, fresh], peak_flops=1e11, most=96, worthwhile=0.001) is fresh


def test_a_failure_is_not_the_end_of_what_is_expected() -> None:
    one = searching(SMALL.layers[2].workload, expected_s=1e-4)
    one.seeds = [{"A": 7}, {"A": 8}, {"A": 9}]
    other = searching(SMALL.layers[4].workload, expected_s=1e-5)

    def next_one() -> Search | None:
        return chosen([one, other], peak_flops=1e11, most=96, worthwhile=0.001)

    for number in (7, 8, 9):
        assert next_one() is one
        one.history.append(({"A": number}, None))
    assert next_one() is other


def test_builders_of_one_layer_are_not_idle() -> None:
    searches = [searching(SMALL.layers[2].workload, expected_s=1e-4)]
    assert len(batch(searches, 1e11, 96, 0.001, at_once=12)) == 12


def test_a_layer_that_is_needed_apart_is_worth_trials() -> None:
    """A pointwise layer may follow two kinds of depthwise ones."""
    depthwise, pointwise = (layer.workload for layer in SMALL.layers[3:5])
    assert isinstance(depthwise, Depthwise)
    other = replace(depthwise, pad=(1, 1, 1, 1))
    history = [({"A": 0}, 5e-4)]
    apart = [searching(layer, history=history) for layer in (depthwise, other, pointwise)]
    known = [({"A": number}, 1e-4) for number in range(60)]
    fused = [
        searching(Separable.of(layer, pointwise), history=known) for layer in (depthwise, other)
    ]

    def next_one() -> Search | None:
        return chosen([*apart, *fused], peak_flops=1e11, most=60, worthwhile=0.001)

    assert next_one() is None
    fused[1].history = [({"A": number}, 2e-3) for number in range(60)]
    assert next_one() in apart[1:]


def test_two_in_one_are_measured_beside_the_two() -> None:
    """Or nothing could be said of which is faster."""
    layers = [layer.workload for layer in SMALL.layers[1:3]]
    together = Separable.of(*layers)
    assert together is not None
    fused = searching(together, expected_s=9e-4)
    depthwise, pointwise, worse = (
        searching(layers[0], expected_s=1e-5),
        searching(layers[1], expected_s=9.1e-4),
        searching(layers[1], "te.avx.pointwise", expected_s=9.9e-4),
    )
    searches = [fused, depthwise, worse, pointwise]
    assert chosen(searches, peak_flops=1e11, most=96, worthwhile=0.001) is fused
    found = batch(searches, 1e11, 96, 0.001, at_once=1)
    assert [one.kernel for one in found.values()] == ["te.pointwise"] * 3
    assert [*found.values()] == [fused, depthwise, pointwise]
    for entry, one in found.items():
        one.history.append((entry.config, one.expected_s))
    assert len(batch(searches, 1e11, 96, 0.001, at_once=1)) == 1


def test_layers_have_to_beat_the_two_in_one() -> None:
    layers = [layer.workload for layer in SMALL.layers[1:3]]
    together = Separable.of(*layers)
    assert together is not None
    depthwise, pointwise = (searching(layer, history=[({"A": 0}, 5e-4)]) for layer in layers)

    def next_one(fused_s: float) -> Search | None:
        fused = searching(together, history=[({"A": n}, fused_s) for n in range(60)])
        return chosen([depthwise, pointwise, fused], peak_flops=1e11, most=60, worthwhile=0.001)

    assert next_one(9e-4) is depthwise  # a quarter may be saved
    assert next_one(7e-4) is None


@dataclass(frozen=True)
class Rules:
    """By which a time is taken: none here."""


class Logged:
    """A log of times that were never measured; each call is a minute later."""

    def __init__(self, path: Path) -> None:
        self.recorder = Recorder(
            target=ZNVER4, threads=1, estimator=None, log=path, records=[], peak_flops=1e11
        )
        self._minute = 0

    def keep(
        self, workload: Workload, name: str, stage: str, times: dict[int, float | None]
    ) -> None:
        """By a config's number in its space, seconds; None of what failed."""
        self._minute += 1
        kept = self.recorder.keep(
            stage,
            Rules(),
            [
                (workload, name, outcome(config(workload, name, number), time_s))
                for number, time_s in times.items()
            ],
        )
        when = f"2026-11-25T10:{self._minute:02}:00+00:00"
        self.recorder.records[-len(kept) :] = [replace(record, when=when) for record in kept]

    def meetings(self, *workloads: Workload, only: tuple[str, ...]) -> list[set[tuple[str, str]]]:
        """Who would meet now: kernel and config."""
        searches = searches_of(dict.fromkeys(workloads, 1.0), self.recorder, only)
        return [
            {(search.kernel, database.canonical(config)) for search, config in rivals}
            for rivals in finalists(searches, self.recorder)
        ]


def config(workload: Workload, name: str, number: int) -> Config:
    return next(islice(kernel(name).space(workload, ZNVER4), number, None))


def outcome(config: Config, time_s: float | None) -> Outcome:
    if time_s is None:
        return Outcome(config=config, error="timeout: no answer after 300 s")
    return Outcome(config=config, seconds=(time_s,), checked=True)


def entry(workload: Workload, name: str, number: int) -> tuple[str, str]:
    return name, database.canonical(config(workload, name, number))


def test_who_caught_up_within_the_hour_need_not_again(tmp_path: Path) -> None:
    workload = Depthwise(N=1, Hi=14, Wi=14, C=32, stride=1, pad=(1, 1, 1, 1))
    log = Logged(tmp_path / "log.jsonl")
    log.keep(workload, "te.depthwise", "trial", {0: 4, 1: 3, 2: None})
    log.keep(workload, "te.depthwise", "final", {0: 5})

    def search(since: str) -> Search:
        [found] = searches_of({workload: 1.0}, log.recorder, ["te.depthwise"], since=since)
        return found

    fastest = config(workload, "te.depthwise", 1)
    for since in ("2026-11-25T10:02", "2026-11-25T10:09"):
        assert (search(since).anchor, search(since).older) == (fastest, 3)
    assert (search("").anchor, search("").older) == (None, 0)
    log.keep(workload, "te.depthwise", "trial", {1: 6, 3: 7})
    found = search("2026-11-25T10:02")
    assert found.anchor is None
    assert [time_s for _, time_s in found.history] == [8, None, 6, 7]


def test_whoever_won_before_meets_the_new_ones(tmp_path: Path) -> None:
    """Although its trial was not among the fastest, and its kernel is not searched any more."""
    workload = Depthwise(N=1, Hi=14, Wi=14, C=32, stride=1, pad=(1, 1, 1, 1))
    old, new = "te.depthwise", "te.llvm.depthwise"
    log = Logged(tmp_path / "log.jsonl")
    log.keep(workload, old, "trial", {0: 99, 1: 98})
    log.keep(workload, old, "final", {0: 40, 1: 50})
    assert log.meetings(workload, only=(old,)) == []
    log.keep(workload, new, "trial", {number: 10 + number for number in range(8)})
    [rivals] = log.meetings(workload, only=(new,))
    assert rivals == {entry(workload, new, number) for number in range(6)} | {
        entry(workload, old, 0)
    }
    assert log.meetings(workload, only=("te.head",)) == []
    log.keep(workload, old, "final", {0: 41})
    log.keep(workload, new, "final", {number: 30 + number for number in range(6)})
    assert log.meetings(workload, only=(new,)) == []


def test_whoever_failed_in_a_meeting_has_not_met(tmp_path: Path) -> None:
    workload = Depthwise(N=1, Hi=14, Wi=14, C=32, stride=1, pad=(1, 1, 1, 1))
    log = Logged(tmp_path / "log.jsonl")
    log.keep(workload, "te.depthwise", "trial", {0: 1, 1: 2})
    log.keep(workload, "te.depthwise", "final", {0: None, 1: 2})
    both = {entry(workload, "te.depthwise", number) for number in range(2)}
    assert log.meetings(workload, only=("te.depthwise",)) == [both]
    log.keep(workload, "te.depthwise", "final", {0: 1, 1: 2})
    assert log.meetings(workload, only=("te.depthwise",)) == []


def test_a_meeting_is_in_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the last winner it would decide all the same."""
    workload = Depthwise(N=1, Hi=14, Wi=14, C=32, stride=1, pad=(1, 1, 1, 1))
    log, writes = Logged(tmp_path / "log.jsonl"), []
    monkeypatch.setattr(
        "os.write",
        lambda file, content, write=os.write: writes.append(file) or write(file, content),
    )
    log.keep(workload, "te.depthwise", "final", {0: 1, 1: 2, 2: None})
    assert len(writes) == 1
    assert len(database.read(tmp_path / "log.jsonl").records) == 3


def test_two_in_one_come_right_behind_the_two(tmp_path: Path) -> None:
    """So that a budget that ends early has decided whole blocks, the heaviest first."""
    log = Logged(tmp_path / "log.jsonl")
    small, large = ([layer.workload for layer in net.layers[1:3]] for net in (SMALL, LARGE))
    seconds = {"Depthwise": 1e-6, "Pointwise": 5e-6, "Separable": 5.5e-6}
    searches = []
    for factor, (depthwise, pointwise) in ((1, small), (2, large)):
        together = Separable.of(depthwise, pointwise)
        assert together is not None
        for workload in (together, pointwise, depthwise):
            kind = type(workload).__name__
            time_s = factor * seconds[kind]
            log.keep(workload, f"te.{kind.lower()}", "trial", {0: time_s, 1: time_s})
            searches += searches_of({workload: 1.0}, log.recorder, [f"te.{kind.lower()}"])
    order = [rivals[0][0].workload for rivals in finalists(searches, log.recorder)]
    assert order == [*large, Separable.of(*large), *small, Separable.of(*small)]


def test_two_in_one_meet_the_two_anew_when_these_have_met(tmp_path: Path) -> None:
    depthwise, pointwise = (layer.workload for layer in MobileNet().layers[1:3])
    together = Separable.of(depthwise, pointwise)
    assert together is not None
    log = Logged(tmp_path / "log.jsonl")
    log.keep(depthwise, "te.depthwise", "trial", {0: 1, 1: 2})
    log.keep(pointwise, "te.pointwise", "trial", {0: 1, 1: 2})
    log.keep(together, "te.separable", "trial", {0: 1, 1: 2})
    log.keep(depthwise, "te.depthwise", "final", {0: 1, 1: 2})
    log.keep(pointwise, "te.pointwise", "final", {0: 1, 1: 2})
    log.keep(together, "te.separable", "final", {0: 1, 1: 2})
    only = ("te.depthwise", "te.pointwise", "te.separable")
    assert log.meetings(together, depthwise, pointwise, only=only) == []
    log.keep(depthwise, "te.llvm.depthwise", "final", {0: 1, 1: 2})
    assert log.meetings(together, depthwise, pointwise, only=only) == [
        {entry(together, "te.separable", number) for number in range(2)}
    ]


def test_little_time_is_shared_by_all_who_shall_meet(tmp_path: Path) -> None:
    layers = [layer.workload for layer in MobileNet().layers[1:3]]
    log = Logged(tmp_path / "log.jsonl")
    for workload, name in zip(layers, ("te.depthwise", "te.pointwise"), strict=True):
        log.keep(workload, name, "trial", {number: 1 + number for number in range(8)})
    searches = searches_of(
        dict.fromkeys(layers, 1.0), log.recorder, ("te.depthwise", "te.pointwise")
    )
    asked = []

    def most(remaining: int) -> int:
        asked.append(remaining)
        return 3

    assert [len(rivals) for rivals in finalists(searches, log.recorder, most)] == [3, 3]
    assert asked == [2, 1]
    assert [len(rivals) for rivals in finalists(searches, log.recorder)] == [FINALISTS] * 2


@pytest.mark.parametrize(
    ("left_s", "remaining", "rivals"),
    [(100.0, 1, FINALISTS), (16.0, 2, 4), (16.0, 8, 2), (1.0, 9, 2)],
)
def test_as_many_rivals_as_there_is_time_for(left_s: float, remaining: int, rivals: int) -> None:
    assert in_time(left_s, 2.0, remaining) == rivals
