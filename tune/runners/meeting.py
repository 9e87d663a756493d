"""Rivals that are timed in turns, one of which may end the process that times them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tune.runners.candidate import Candidate
from tune.runners.protocol import Outcome
from tune.runners.worker import WorkerCrash, WorkerError, WorkerTimeout, failure

Meet = Callable[[Sequence[Candidate]], list[Outcome]]


def together(meet: Meet, rivals: Sequence[Candidate | Outcome]) -> list[Outcome]:
    """One outcome a rival, in their order; those that could not be built have theirs.

    meet  times candidates in turns; raises what a worker's call does

    After a failure each is tried alone, and those that do not fail alone meet again.
    """
    built = [rival for rival in rivals if isinstance(rival, Candidate)]
    outcomes = iter(_met(meet, built) if built else ())
    return [rival if isinstance(rival, Outcome) else next(outcomes) for rival in rivals]


def _met(meet: Meet, rivals: Sequence[Candidate]) -> list[Outcome]:
    try:
        return meet(rivals)
    except (WorkerError, WorkerCrash, WorkerTimeout) as error:
        if len(rivals) == 1:
            return [Outcome(config=rivals[0].config, error=failure(error))]
    alone = [outcome for rival in rivals for outcome in _met(meet, [rival])]
    if all(outcome.error is None for outcome in alone):
        return alone
    pairs = zip(rivals, alone, strict=True)
    return together(meet, [rival if one.error is None else one for rival, one in pairs])
