"""Meetings: who ends one is found, and the others meet all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kernels.workload import Pointwise
from tune.runners.candidate import Candidate
from tune.runners.meeting import together
from tune.runners.protocol import Outcome
from tune.runners.worker import WorkerCrash

WORKLOAD = Pointwise(N=1, H=4, W=4, Ci=16, Co=32)
UNBUILT = Outcome(config={"A": 9}, error="compile: no")


def candidate(number: int) -> Candidate:
    return Candidate(
        workload=WORKLOAD, kernel="te.any", config={"A": number}, library=Path(), shapes=()
    )


class Hall:
    """Where some configs end every meeting, or only one of several.

    meetings  who came to each
    """

    def __init__(self, ends: Sequence[int], several: bool = False) -> None:
        self._ends, self._several = ends, several
        self.meetings: list[list[int]] = []

    def meet(self, rivals: Sequence[Candidate]) -> list[Outcome]:
        numbers = [int(rival.config["A"]) for rival in rivals]
        self.meetings.append(numbers)
        if set(numbers) & set(self._ends) and (not self._several or len(rivals) > 1):
            raise WorkerCrash("gone")
        return [Outcome(config=rival.config, seconds=(1.0,), checked=True) for rival in rivals]


@pytest.mark.parametrize(
    ("ends", "meetings"),
    [
        ((), [[0, 1, 2]]),
        ((1,), [[0, 1, 2], [0], [1], [2], [0, 2]]),
        ((0, 1), [[0, 1, 2], [0], [1], [2], [2]]),
        ((0, 1, 2), [[0, 1, 2], [0], [1], [2]]),
    ],
)
def test_whoever_ends_a_meeting_stays_away(ends: Sequence[int], meetings: list[list[int]]) -> None:
    hall = Hall(ends)
    outcomes = together(hall.meet, [candidate(0), UNBUILT, candidate(1), candidate(2)])
    assert hall.meetings == meetings
    assert outcomes[1] is UNBUILT
    errors = [outcomes[number].error for number in (0, 2, 3)]
    assert errors == ["run: gone" if number in ends else None for number in range(3)]


def test_times_alone_count_where_nobody_ends_a_meeting_alone() -> None:
    hall = Hall(ends=(1,), several=True)
    outcomes = together(hall.meet, [candidate(number) for number in range(3)])
    assert [outcome.seconds for outcome in outcomes] == [(1.0,)] * 3


def test_nobody_meets_where_nothing_was_built() -> None:
    hall = Hall(ends=())
    assert together(hall.meet, [UNBUILT]) == [UNBUILT]
    assert hall.meetings == []
