"""A product of matrices in seven products of halves instead of eight, and these likewise.

Maths   Pixels, their channels and the channels of the output are cut in two,
            x = (x11 x12)  wt = (wt11 wt12)  y = (y11 y12)
                (x21 x22)       (wt21 wt22)      (y21 y22)
        and with these sums, the left ones of pixels, the right ones of weights,
            s1 = x21 + x22   t1 = wt12 - wt11
            s2 = s1 - x11    t2 = wt22 - t1
            s3 = x11 - x21   t3 = wt22 - wt12
            s4 = x12 - s2    t4 = t2 - wt21
        each sum of products goes on where one before it left off:
            u = x11 wt11          y11 = u + x12 wt21
            u = u + s2 t2         v   = u + s3 t3     y21 = v - x22 t4
            w = s1 t1             y22 = v + w
            u = u + w             y12 = u + s4 wt22
        At LEVELS 2 each of the seven is computed in this way, too: 49 products instead of 64.
Errors  Sums of both signs round more: errors are about twice those of one sum over all channels,
        and within `kernels.tolerance` like those.
Source  Strassen, "Gaussian Elimination is not Optimal", 1969, in the form of Winograd, 1971.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from kernels.space import blocks
from kernels.workload import Pointwise

Place = tuple[int, int]  # row and column of a part of a matrix
MOST_LEVELS = 2
WORTH_HALVING = 128  # channels, by default


class End(NamedTuple):
    """What becomes of a product's sums: a quarter of y, or u or v, which wait for another.

    plus  what waits and is added to them before; "" for nothing
    """

    becomes: Place | str
    plus: str = ""


class Step(NamedTuple):
    """One of the seven products.

    start  what its sums start from; "" for zero
    down   1 when it is for the pixels below alone, else 0
    """

    start: str
    down: int
    ends: tuple[End, ...]


# In the order of the formulas, and so are the factors below.
STEPS = (
    Step("", 0, (End("u"),)),
    Step("u", 0, (End((0, 0)),)),
    Step("u", 0, (End("u"),)),
    Step("u", 1, (End("v"),)),
    Step("v", 1, (End((1, 0)),)),
    Step("", 0, (End((1, 1), plus="v"), End("u", plus="u"))),
    Step("u", 0, (End((0, 1)),)),
)
PRODUCTS = len(STEPS)


Combine = Callable[[Any, Any], Any]
Side = Callable[[Sequence[Any], Combine, Combine], tuple[Any, ...]]


def of_pixels(quarters: Sequence[Any], add: Combine, subtract: Combine) -> tuple[Any, ...]:
    """Each product's left factor, of x11, x12, x21, x22."""
    x11, x12, x21, x22 = quarters
    s1 = add(x21, x22)
    s2 = subtract(s1, x11)
    return x11, x12, s2, subtract(x11, x21), x22, s1, subtract(x12, s2)


def of_weights(quarters: Sequence[Any], add: Combine, subtract: Combine) -> tuple[Any, ...]:
    """Each product's right factor, of wt11, wt12, wt21, wt22."""
    wt11, wt12, wt21, wt22 = quarters
    t1 = subtract(wt12, wt11)
    t2 = subtract(wt22, t1)
    return wt11, wt21, t2, subtract(wt22, wt12), subtract(wt21, t2), t1, wt22


def factors(
    side: Side, square: Sequence[Sequence[Any]], add: Combine, subtract: Combine
) -> list[Any]:
    """Each product's factor, of 2**levels by as many parts of a matrix."""
    if len(square) == 1:
        return [square[0][0]]
    half = len(square) // 2
    quarters = [
        [row[across : across + half] for row in square[down : down + half]]
        for down in (0, half)
        for across in (0, half)
    ]

    def each(combine: Combine) -> Combine:
        return lambda one, other: [
            [combine(*pair) for pair in zip(*rows, strict=True)]
            for rows in zip(one, other, strict=True)
        ]

    parts = side(quarters, each(add), each(subtract))
    return [factor for part in parts for factor in factors(side, part, add, subtract)]


def sums(side: Side, levels: int) -> list[int | None]:
    """Each product's factor as a number among the sums; None where it is a part of the matrix."""
    numbers, size = count(), 1 << levels

    def summed(one: bool, other: bool) -> bool:
        return True

    made = factors(side, [[False] * size] * size, summed, summed)
    return [next(numbers) if is_sum else None for is_sum in made]


def waiting(levels: int) -> dict[tuple[int, str], int]:
    """Of u and v between products of 2**level by as many tiles the number of the first tile."""
    names = [(level, name) for level in range(levels) for name in ("u", "v")]
    starts = np.cumsum([0, *(4**level for level, _ in names)])
    return {key: int(start) for key, start in zip(names, starts, strict=False)}


def waiting_tiles(levels: int) -> int:
    """How many tiles u and v have in all."""
    return sum(2 * 4**level for level in range(levels))


def levels_of(workload: Pointwise, lanes: int) -> tuple[int, ...]:
    """How often it can be halved into whole vectors of channels, each product with a pixel."""
    return tuple(
        levels
        for levels in range(1, MOST_LEVELS + 1)
        if workload.Ci % (lanes << levels) == 0
        and workload.Co % (lanes << levels) == 0
        and workload.pixels >> levels
    )


def halved(workload: Pointwise, levels: int) -> Pointwise:
    """One of the products."""
    pixels = blocks(workload.pixels, 1 << levels)
    Ci, Co = workload.Ci >> levels, workload.Co >> levels
    return replace(workload, N=1, H=1, W=pixels, Ci=Ci, Co=Co)


def worthwhile(workload: Pointwise, levels: Sequence[int]) -> int:
    """Of these the one to begin with: each halves sums that are long enough."""
    narrow = min(workload.Ci, workload.Co)
    return max((count for count in levels if narrow >> (count - 1) >= WORTH_HALVING), default=1)


def flops(workload: Pointwise, levels: int = MOST_LEVELS) -> int:
    """Operations of all products; a multiply-add is two."""
    products: int = PRODUCTS**levels
    return 2 * workload.macs * products >> 3 * levels
