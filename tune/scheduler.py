"""Which workload is measured next: where the network can gain most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST = 8  # trials that a task gets before tasks are compared, where nothing is known
DOUBT = 1e-4  # share of the network's time; what promises less can wait until all have been tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One workload with one kernel, as the scheduler sees it.

    weight     how many layers of the network it stands for
    best_s     seconds of its best config; before any has been measured what is expected of it,
               None when nothing is, or when all have failed
    rival_s    of the best other way to the same result, None when there is none
    first      trials before it is compared with others; none where something is expected of it
    trials     configs measured
    remaining  configs that may still be measured
    gain       share of best_s that measuring more is expected to save; while nothing has run, the
               chance that something will
    """

    key: str
    weight: float
    best_s: float | None
    rival_s: float | None = None
    first: int = FIRST
    trials: int
    remaining: int
    gain: float


def choose(tasks: Sequence[Task], *, worthwhile: float) -> Task | None:
    """The task that promises the network most, None when none promises enough.

    worthwhile  share of the network's time; a task that promises less is not measured

    Every task gets its first trials, the least tried before the others. When no other promises
    much, those have a trial of which little is expected: that may be wrong. One of which all trials
    failed comes last, lest a kernel that cannot run here takes the time of those that can. Among
    equals the earliest of `tasks` is taken.
    """
    candidates = [task for task in tasks if task.remaining > 0 and task.gain > 0]
    beginning = [task for task in candidates if task.trials < task.first]
    if beginning:
        return min(beginning, key=lambda task: task.trials)
    winners = [task for task in tasks if task.best_s is not None and task.best_s <= _rival_s(task)]
    network_s = sum(task.weight * (task.best_s or 0.0) for task in winners)
    timed = [task for task in candidates if task.best_s is not None]
    best = max(timed, key=_promise_s, default=None)
    if best is not None and _promise_s(best) >= max(worthwhile, DOUBT) * network_s:
        return best
    untried = [task for task in timed if task.trials == 0]
    if untried:
        return min(untried, key=lambda task: (task.best_s or 0.0) - _rival_s(task))
    if best is not None and _promise_s(best) >= worthwhile * network_s:
        return best
    failing = [task for task in candidates if task.best_s is None and task.gain >= worthwhile]
    return max(failing, key=lambda task: task.gain, default=None)


def _promise_s(task: Task) -> float:
    """Seconds of an inference that measuring this task further is expected to save.

    Nothing is saved before it is faster than its rival.
    """
    best_s = task.best_s or 0.0
    return task.weight * max(0.0, min(best_s, _rival_s(task)) - best_s * (1 - task.gain))


def _rival_s(task: Task) -> float:
    return math.inf if task.rival_s is None else task.rival_s
