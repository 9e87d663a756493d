"""The factors of pixels of the product in `kernels.te.avx.strassen`, laid out by products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from kernels.space import blocks
from kernels.te.avx.strassen.steps import halves
from kernels.te.llvm.code import Code, moved


def heights_of(pixels: int, level: int) -> tuple[int, ...]:
    """Of a tile's register tiles, from above; none has more rows than its like in a half above."""
    if not level:
        return (pixels,)
    upper = blocks(pixels, 2)
    return (*heights_of(upper, level - 1), *heights_of(pixels - upper, level - 1))


class Pixels(NamedTuple):
    """A matrix of them.

    heights  of its register tiles
    vector   what names one, by register tile, row of it and part of the channels
    """

    heights: tuple[int, ...]
    vector: Callable[[int, int, int], str]


def factors(code: Code, x: Pixels) -> Iterator[Pixels]:
    """Those of all products, one after the other."""
    if len(x.heights) == 1:
        yield x
        return
    x11, x12, _, x22 = _quarters(x)
    s1, s2, s3, s4 = _sums(code, x)
    for factor in (x11, x12, s2, s3, x22, s1, s4):
        yield from factors(code, factor)


def _quarters(x: Pixels) -> list[Pixels]:
    middle = len(x.heights) // 2

    def quarter(heights: tuple[int, ...], first: int, left: int) -> Pixels:
        def vector(tile: int, row: int, part: int) -> str:
            return x.vector(first + tile, min(row, heights[tile] - 1), left + part)

        return Pixels(heights, vector)

    return [
        quarter(heights, first, left)
        for heights, first in zip(halves(x.heights), (0, middle), strict=True)
        for left in (0, middle)
    ]


def _sums(code: Code, x: Pixels) -> list[Pixels]:
    """s1 to s4."""
    x11, x12, x21, x22 = _quarters(x)

    def summed(
        operation: Callable[[str, str], str], one: Pixels, other: Pixels, like: Pixels
    ) -> Pixels:
        def vector(*place: int) -> str:
            return operation(one.vector(*place), other.vector(*place))

        return Pixels(like.heights, cache(vector))

    s1 = summed(code.add, x21, x22, like=x11)
    s2 = summed(code.subtract, s1, x11, like=x11)
    s3 = summed(code.subtract, x11, x21, like=x21)
    return [s1, s2, s3, summed(code.subtract, x12, s2, like=x11)]


def row_laid_out(
    code: Code,
    heights: tuple[int, ...],
    row: int,
    *,
    pixel: int,
    depth: int,
    factor: int,
    ahead: int,
) -> tuple[str, str]:
    """Name and code of `int (s, x, next)`, which lays out that row of all factors of a tile.

    With one level only s1 to s4: the other factors are blocks of x.

    s       where the row begins in the first factor
    x       the pixel of the same number
    pixel   elements from one to the next
    depth   channels of a factor
    factor  elements from one to the next
    ahead   elements from `next` on that each vector of channels asks for
    """

    @cache
    def vector(tile: int, of_tile: int, part: int) -> str:
        number = sum(heights[:tile]) + of_tile
        return code.load_at("%x.now", (number - row) * pixel + part * depth)

    x = Pixels(heights, vector)
    for number, laid_out in enumerate(_sums(code, x) if len(heights) == 2 else factors(code, x)):
        if row < laid_out.heights[0]:
            address = code.behind("%s.now", number * factor)
            code.store(laid_out.vector(0, row, 0), address)
    code.ask("%next.now", ahead)
    steps = {"%s": code.lanes, "%x": code.lanes, "%next": ahead}
    phis = [("i32", "%turn", str(depth // code.lanes), "%left"), *moved(code, steps)]
    code.loop(phis, before=[], turn=code.lines, after=[])
    return code.function([f"ptr {name}" for name in steps])
