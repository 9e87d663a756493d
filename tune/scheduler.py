"""Which workload is measured next: where the network can gain most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST = 8  # trials that every task gets before tasks are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One workload with one kernel, as the scheduler sees it.

    weight     how many layers of the network it stands for
    best_s     seconds of its best config, None before any has run
    trials     configs measured
    remaining  configs that may still be measured
    gain       share of best_s that measuring more is expected to save; while nothing has run, the
               chance that something will
    """

    key: str
    weight: int
    best_s: float | None
    trials: int
    remaining: int
    gain: float


def choose(tasks: Sequence[Task], *, worthwhile: float) -> Task | None:
    """The task that promises the network most, None when none promises enough.

    worthwhile  share of the network's time; a task that promises less is not measured

    Every task gets its first trials, the least tried before the others. One of which all trials
    failed comes last, lest a kernel that cannot run here takes the time of those that can. Among
    equals the earliest of `tasks` is taken.
    """
    candidates = [task for task in tasks if task.remaining > 0 and task.gain > 0]
    beginning = [task for task in candidates if task.trials < FIRST]
    if beginning:
        return min(beginning, key=lambda task: task.trials)
    network_s = sum(task.weight * (task.best_s or 0.0) for task in tasks)
    timed = [task for task in candidates if task.best_s is not None]
    best = max(timed, key=_promise_s, default=None)
    if best is not None and _promise_s(best) >= worthwhile * network_s:
        return best
    failing = [task for task in candidates if task.best_s is None and task.gain >= worthwhile]
    return max(failing, key=lambda task: task.gain, default=None)


def _promise_s(task: Task) -> float:
    """Seconds of an inference that measuring this task further is expected to save."""
    return task.weight * (task.best_s or 0.0) * task.gain
