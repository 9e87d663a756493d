"""Which task is next: the one that helps the network most, and when to stop."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tune import scheduler
from tune.scheduler import FIRST, Task

WORTHWHILE = 0.001
choose = partial(scheduler.choose, worthwhile=WORTHWHILE)

TASK = Task(key="a", weight=1, best_s=1e-3, trials=FIRST, remaining=100, gain=0.1)


def named(key: str, **changes: object) -> Task:
    return replace(TASK, key=key, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "better",
    [{"weight": 2}, {"best_s": 2e-3}, {"gain": 0.2}],
    ids=lambda better: next(iter(better)),
)
def test_greatest_saving_of_the_network_is_chosen(better: dict[str, object]) -> None:
    a, b = named("a"), named("b", **better)
    assert choose([a, b]) == choose([b, a]) == b


def test_saving_counts_in_seconds_not_in_shares() -> None:
    quick, slow = named("quick", best_s=1e-5, gain=0.5), named("slow", best_s=1e-3, gain=0.02)
    assert choose([quick, slow]) == slow


def test_nothing_is_saved_before_the_rival_is_beaten() -> None:
    behind = named("behind", best_s=4e-3, rival_s=1e-3, gain=0.5)
    near = named("near", best_s=1.1e-3, rival_s=1e-3, gain=0.2)
    ahead = named("ahead", best_s=1e-3, rival_s=4e-3, gain=0.1)
    assert choose([behind, near]) == near
    assert choose([near, replace(near, key="alone", rival_s=None)]).key == "alone"  # type: ignore[union-attr]
    assert choose([behind, near, ahead]) == near  # 0.12 ms, and 0.10
    assert choose([behind, replace(near, gain=0.17), ahead]) == ahead  # 0.087 ms


def test_what_a_rival_beats_is_no_part_of_the_network() -> None:
    other = named("other", weight=99, rival_s=0.9e-3, gain=0.0)
    assert choose([other, named("a", gain=2 * WORTHWHILE)]) is not None
    assert choose([replace(other, rival_s=None), named("a", gain=2 * WORTHWHILE)]) is None


def test_a_task_is_begun_with_what_is_known_of_it() -> None:
    known = named("known", best_s=1e-9, trials=3, first=4)
    assert choose([known, named("a")]) == known
    assert choose([replace(known, trials=4), named("a")]) == named("a")


def test_every_task_gets_its_first_trials() -> None:
    great = named("great", weight=13, gain=0.9)
    begun = named("begun", best_s=1e-9, trials=FIRST - 1)
    fresh = named("fresh", best_s=None, trials=0)
    assert choose([great, begun, fresh]) == fresh
    assert choose([great, begun]) == begun


def test_what_is_expected_counts_before_anything_ran() -> None:
    fresh = named("fresh", trials=0, first=0, gain=0.3)
    assert choose([TASK, fresh]) == fresh
    assert choose([TASK, replace(fresh, rival_s=0.6e-3)]) == TASK  # 0.1 ms, and less than nothing


def test_of_whom_little_is_expected_is_tried_at_last() -> None:
    done, failing = named("done", gain=0.0), named("failing", best_s=None, gain=0.9)
    hopeless, bad = (
        named(key, trials=0, first=0, best_s=best_s, rival_s=1e-3, gain=0.3)
        for key, best_s in (("hopeless", 9e-3), ("bad", 2e-3))
    )
    assert choose([hopeless, bad, failing, done, TASK]) == TASK
    assert choose([hopeless, bad, failing, done]) == bad
    assert choose([hopeless, replace(bad, trials=1), failing, done]) == hopeless
    tried = [replace(task, trials=1) for task in (hopeless, bad)]
    assert choose([*tried, failing, done]) == failing


def test_the_most_thorough_effort_doubts_what_is_expected_as_well() -> None:
    hopeless = named("hopeless", trials=0, first=0, best_s=9e-3, rival_s=1e-3, gain=0.3)
    fading = named("fading", gain=1e-9)
    assert scheduler.choose([fading, hopeless], worthwhile=0.0) == hopeless
    tried = replace(hopeless, trials=1)
    assert scheduler.choose([fading, tried], worthwhile=0.0) == fading


def test_task_that_only_fails_comes_last() -> None:
    failing = named("failing", best_s=None, gain=0.9)
    assert choose([failing, TASK]) == TASK
    assert choose([failing, named("done", gain=0.0)]) == failing
    assert choose([replace(failing, gain=WORTHWHILE / 2)]) is None


def test_nothing_is_chosen_where_no_gain_is_worth_its_time() -> None:
    assert choose([]) is None
    assert choose([named("a", gain=0.0), named("b", remaining=0)]) is None
    assert choose([named("a", remaining=0, best_s=1.0), named("b")]) is None
    assert choose([named("a", remaining=0, best_s=None, trials=0)]) is None


def test_stop_is_a_share_of_the_whole_network() -> None:
    rest = named("rest", weight=9, gain=0.0)
    assert choose([rest, named("a", gain=11 * WORTHWHILE)]) is not None
    assert choose([rest, named("a", gain=9 * WORTHWHILE)]) is None


def test_earliest_of_equals_is_chosen() -> None:
    assert choose([named("a"), named("b")]) == named("a")
    assert choose([named("b"), named("a")]) == named("b")


def test_tuning_ends() -> None:
    tasks = {key: named(key, trials=0, best_s=None, remaining=40, gain=0.3) for key in "abc"}
    order = []
    while task := choose(list(tasks.values())):
        order.append(task.key)
        tasks[task.key] = replace(
            task,
            best_s=1e-3,
            trials=task.trials + FIRST,
            remaining=task.remaining - FIRST,
            gain=task.gain / 2,
        )
    assert order[:3] == ["a", "b", "c"]
    assert all(task.remaining == 0 for task in tasks.values())
