"""How many samples of a time are enough: what was disturbed is taken again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import median
from typing import TypeVar

SPREAD = 0.1
Rival = TypeVar("Rival", bound=Hashable)


def agree(samples: Sequence[float]) -> bool:
    """Whether most samples lie near the fastest: what was measured was not disturbed."""
    return median(samples) <= (1 + SPREAD) * min(samples)


def settled(take: Callable[[], tuple[float, ...]], attempts: int) -> tuple[float, ...]:
    """The first set of samples that agree; of `attempts` that do not, the fastest."""
    sets = [take()]
    while not agree(sets[-1]) and len(sets) < attempts:
        sets.append(take())
    return min(sets, key=median)


def in_turns(
    rivals: Iterable[Rival], sample: Callable[[Rival], float], *, rounds: int, most: int
) -> dict[Rival, tuple[float, ...]]:
    """The fastest `rounds` samples of each rival, taken in turns.

    After `rounds` there is another round only while the samples of some rival do not agree, and
    there are at most `most`.
    """
    fastest: dict[Rival, tuple[float, ...]] = dict.fromkeys(rivals, ())
    for number in range(most):
        if number >= rounds and all(map(agree, fastest.values())):
            break
        for rival, samples in fastest.items():
            fastest[rival] = tuple(sorted((*samples, sample(rival)))[:rounds])
    return fastest
