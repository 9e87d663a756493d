"""Which workload is measured next: where the network can gain most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORTHWHILE = 0.001  # of the network's time; a batch that promises less is not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One workload with one kernel, as the scheduler sees it.

    weight     how many layers of the network it stands for
    best_s     seconds of its best config, None before any has run
    trials     configs measured
    remaining  configs that may still be measured
    gain       share of best_s that measuring more is expected to save
    """

    key: str
    weight: int
    best_s: float | None
    trials: int
    remaining: int
    gain: float


def choose(tasks: Sequence[Task]) -> Task | None:
    """The task that promises the network most, None when none promises enough.

    A task that has no time yet comes first, the least tried before the others.
    """
    open_tasks = [task for task in tasks if task.remaining > 0 and task.gain > 0]
    untimed = [task for task in open_tasks if task.best_s is None]
    if untimed:
        return min(untimed, key=lambda task: task.trials)
    total_s = sum(task.weight * (task.best_s or 0.0) for task in tasks)
    best = max(open_tasks, key=_promise_s, default=None)
    return best if best is not None and _promise_s(best) >= WORTHWHILE * total_s else None


def _promise_s(task: Task) -> float:
    """Seconds an inference that measuring this task further is expected to save."""
    return task.weight * (task.best_s or 0.0) * task.gain
