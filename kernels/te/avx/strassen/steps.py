"""The work on a tile of the product in `kernels.te.avx.strassen`, step by step: data, without TVM.

A group of seven products, the last level, is a step; so are a sum of what groups have made, and
what is left to do, bias and activation.
"""

from __future__ import annotations

from typing import NamedTuple

# The factors of weights, as blocks of wt11, wt21, wt22 and t2: which, and which one less.
FACTORS = ((0, None), (1, None), (3, None), (3, 0), (1, 3), (2, 3), (2, None))
PRODUCTS = len(FACTORS)
WAITING = 2  # sums that wait in memory, u and v


class Tile(NamedTuple):
    """What there is to multiply, in elements if not said otherwise.

    heights   pixels of its register tiles, from above; of halves the upper one's are no less
    vectors   of channels, of a register tile
    depth     channels of the input that a product has
    x         from a pixel to the next
    s         from a row of a factor of pixels to the next, and from a factor to the next
    columns   of a block of weights
    y         from a pixel to the next, and from a register tile to the one to its right
    unrolled  channels of the input that a turn of a loop takes
    ahead     that a turn asks for, of what comes next
    """

    heights: tuple[int, ...]
    vectors: int
    depth: int
    x: int
    s: tuple[int, int]
    columns: int
    y: tuple[int, int]
    unrolled: int
    ahead: int
    activation: str

    @property
    def cells(self) -> int:
        """Vectors of the highest register tile."""
        return self.heights[0] * self.vectors

    @property
    def asked(self) -> int:
        """Elements that the loop of a product asks for."""
        return self.depth // self.unrolled * self.ahead


class Sums(NamedTuple):
    """A matrix of as many register tiles to the right as down, quarter by quarter.

    at  the vector of the tile's own memory that it begins at
    """

    at: int
    heights: tuple[int, ...]


class Step(NamedTuple):
    """A part of the work.

    kind   "group", "sum" or "rest", and what else its code depends on
    given  elements from where its operands begin
    """

    kind: tuple[str, *tuple[int, ...]]
    given: tuple[int, ...]


def halves(heights: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Upper and lower."""
    middle = len(heights) // 2
    return heights[:middle], heights[middle:]


class Steps:
    """The work on a tile of several levels.

    found   in this order
    memory  vectors that it takes
    zeros   what stands for no sums before
    """

    def __init__(self, tile: Tile, lanes: int) -> None:
        self.found: list[Step] = []
        self.memory = WAITING * tile.cells
        self._tile, self._lanes, self._groups = tile, lanes, 0
        self._waiting = {}
        self.zeros = self._room(tile.heights[:2])
        half, _ = halves(tile.heights)
        while len(half) > 1:
            self._waiting[2 * len(half)] = [self._room(half) for _ in range(3)]
            half, _ = halves(half)
        y = self._room(tile.heights)
        self._plus(y, None, wt=0, less=())
        self._finish(y, 0, 0)

    def _room(self, heights: tuple[int, ...]) -> Sums:
        sums = Sums(self.memory, heights)
        self.memory += self._size(sums)
        return sums

    def _size(self, sums: Sums) -> int:
        return self._tile.cells * len(sums.heights) ** 2

    def _quarters(self, sums: Sums) -> list[Sums]:
        upper, lower = halves(sums.heights)
        quarter = self._size(sums) // 4
        heights = (upper, upper, lower, lower)
        return [Sums(sums.at + place * quarter, half) for place, half in enumerate(heights)]

    def _sum(self, into: Sums, one: Sums | None, other: Sums) -> Sums:
        """Where the sum of both is now: in `into`, if there are two."""
        if one is None:
            return other
        given = tuple(sums.at * self._lanes for sums in (into, one, other))
        self.found.append(Step(("sum", self._size(into)), given))
        return into

    def _plus(self, into: Sums, before: Sums | None, wt: int, less: tuple[int, ...]) -> None:
        """Make `into` of what was before, or nothing, and the next product.

        wt    where its factor of weights begins
        less  from there to what is subtracted
        """
        tile = self._tile
        if len(into.heights) == 2:
            places = ((before or self.zeros).at * self._lanes, into.at * self._lanes)
            x = PRODUCTS * self._groups * tile.s[1]
            asked = PRODUCTS * self._groups * tile.asked
            kind = ("group", *into.heights, len(less))
            self.found.append(Step(kind, (*places, x, wt, asked, *less)))
            self._groups += 1
            return
        size = tile.depth * tile.columns * len(into.heights) ** 2 // 4
        factors = iter(
            (wt + block * size, less if other is None else (*less, (other - block) * size))
            for block, other in FACTORS
        )
        y11, y12, y21, y22 = self._quarters(into)
        b11, b12, b21, b22 = self._quarters(before) if before else [None] * 4
        u, v, w = (
            sums._replace(heights=y.heights)
            for sums, y in zip(self._waiting[len(into.heights)], (y11, y21, y11), strict=True)
        )
        self._plus(u, None, *next(factors))
        self._plus(y11, self._sum(y11, b11, u), *next(factors))
        self._plus(u, u, *next(factors))
        self._plus(v, u, *next(factors))
        self._plus(y21, self._sum(y21, b21, v), *next(factors))
        self._plus(w, None, *next(factors))
        self._sum(y22, self._sum(y22, b22, v), w)
        self._sum(u, u, w)
        self._plus(y12, self._sum(y12, b12, u), *next(factors))

    def _finish(self, sums: Sums, y: int, column: int) -> None:
        """Let them become a part of y.

        y       where that begins
        column  register tiles to its left
        """
        tile = self._tile
        if len(sums.heights) == 1:
            given = (y + column * tile.y[1], sums.at * self._lanes, column * tile.columns)
            self.found.append(Step(("rest", *sums.heights), given))
            return
        upper, _ = halves(sums.heights)
        for place, quarter in enumerate(self._quarters(sums)):
            down, right = divmod(place, 2)
            below = down * sum(upper) * tile.y[0]
            self._finish(quarter, y + below, column + right * len(upper))
