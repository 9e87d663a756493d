"""A tile of the product in `kernels.te.avx.strassen`: the work step by step, and its code.

A tile of two levels has 49 products, but of few kinds: of one or two heights, by weights that are
one, two or four loads. The steps are a table, and each kind has its code once: straight on, the
code of a tile would not fit a core's cache of instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product as every
from typing import NamedTuple

from kernels.te.avx import product
from kernels.te.avx.product import Operands
from kernels.te.llvm.code import Code, looped
from kernels.te.tile import LINE_BYTES

# Of each product's factor of weights: which block of wt11, wt21, wt22, t2, and which one less.
FACTORS = ((0, None), (1, None), (3, None), (3, 0), (1, 3), (2, 3), (2, None))


class Tile(NamedTuple):
    """What there is to multiply, in elements if not said otherwise.

    heights   pixels of its register tiles, from above; of halves the upper one's are no less
    vectors   of channels, of a register tile
    depth     channels of the input that a product has
    row       from a row of a factor of pixels to the next
    factor    of pixels: from one to the next
    columns   of a block of weights
    apart     from register tiles beside each other in y to the next
    below     from a pixel of y to the next
    unrolled  channels of the input that a turn of a loop takes
    ahead     that a turn asks for, of what comes next
    """

    heights: tuple[int, ...]
    vectors: int
    depth: int
    row: int
    factor: int
    columns: int
    apart: int
    below: int
    unrolled: int
    ahead: int
    activation: str


class Sums(NamedTuple):
    """A matrix of as many register tiles to the right as down, quarter by quarter.

    at  where it begins in the tile's own memory
    """

    at: int
    heights: tuple[int, ...]


class Step(NamedTuple):
    """A part of the work.

    kind   "product", "sum" or "rest", and what else its code depends on
    given  elements from where its operands begin
    """

    kind: tuple[str, *tuple[int, ...]]
    given: tuple[int, ...]


def halves(heights: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Upper and lower."""
    middle = len(heights) // 2
    return heights[:middle], heights[middle:]


class Steps:
    """The work on a tile, as `found`, and how much `memory` it takes."""

    def __init__(self, tile: Tile, lanes: int) -> None:
        self.found: list[Step] = []
        self.memory = 0
        self._tile = tile
        self._register_tile = tile.heights[0] * tile.vectors * lanes
        self._products = 0
        self.zeros = self._room(tile.heights[:1])
        self._waiting = {}
        half, _ = halves(tile.heights)
        while half:
            self._waiting[2 * len(half)] = [self._room(half) for _ in range(3)]
            half, _ = halves(half)
        y = self._room(tile.heights)
        self._plus(y, None, wt=0, less=())
        self._finish(y, 0)

    def _room(self, heights: tuple[int, ...]) -> Sums:
        sums = Sums(self.memory, heights)
        self.memory += self._size(sums)
        return sums

    def _size(self, sums: Sums) -> int:
        return self._register_tile * len(sums.heights) ** 2

    def _quarters(self, sums: Sums) -> list[Sums]:
        upper, lower = halves(sums.heights)
        quarter = self._size(sums) // 4
        heights = (upper, upper, lower, lower)
        return [Sums(sums.at + place * quarter, half) for place, half in enumerate(heights)]

    def _sum(self, into: Sums, one: Sums | None, other: Sums) -> Sums:
        """Where the sum of both is now: in `into`, if there are two."""
        if one is None:
            return other
        self.found.append(Step(("sum", self._size(into)), (into.at, one.at, other.at)))
        return into

    def _plus(self, into: Sums, before: Sums | None, wt: int, less: tuple[int, ...]) -> None:
        """Make `into` of what was before, or nothing, and the next product.

        wt    where its factor of weights begins
        less  from there to what is subtracted
        """
        tile = self._tile
        if len(into.heights) == 1:
            x, asked = (self._products * size for size in (tile.factor, self._asked()))
            given = (into.at, (before or self.zeros).at, x, wt, asked, *less)
            self.found.append(Step(("product", *into.heights, len(less)), given))
            self._products += 1
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

    def _asked(self) -> int:
        """Elements that a product asks for."""
        return self._tile.depth // self._tile.unrolled * self._tile.ahead

    def _finish(self, sums: Sums, y: int, column: int = 0) -> None:
        """Let them become a part of y.

        y       where that begins
        column  register tiles to its left
        """
        if len(sums.heights) == 1:
            given = (y + column * self._tile.apart, sums.at, column * self._tile.columns)
            self.found.append(Step(("rest", *sums.heights), given))
            return
        upper, _ = halves(sums.heights)
        for place, quarter in enumerate(self._quarters(sums)):
            down, right = divmod(place, 2)
            below = down * sum(upper) * self._tile.below
            self._finish(quarter, y + below, column + right * len(upper))


def coded(code: Code, tile: Tile) -> tuple[str, str]:
    """Name and code of `int (y, s, wt, bias, next)`, which makes a tile.

    s     factors of pixels (7**LEVELS,BLOCK_P,row), product by product
    next  from where on the loops ask for what comes next
    """
    steps = Steps(tile, code.lanes)
    kinds = list(dict.fromkeys(step.kind for step in steps.found))
    makers = {"product": _product, "sum": _sum, "rest": _rest}
    made = []
    for number, (kind, *sizes) in enumerate(kinds):
        code.lines = [f"kind.{number}:"]
        makers[kind](code, tile, number, *sizes)
        made.append(code.lines)
    code.lines = ["start:", f"%memory = alloca [{steps.memory} x float], align {LINE_BYTES}"]
    for cell in range(tile.heights[0] * tile.vectors):
        code.store("zeroinitializer", code.behind("%memory", steps.zeros.at + cell * code.lanes))
    table = [
        (kinds.index(step.kind), *(elements * code.item_bytes for elements in step.given))
        for step in steps.found
    ]
    code.steps(table, made)
    return code.function([f"ptr %{name}" for name in ("y", "s", "wt", "bias", "next")])


def _given(code: Code, *pointers: str) -> list[str]:
    """The operands of a step."""
    return [code.advance(name, f"%given.{place}") for place, name in enumerate(pointers)]


def _product(code: Code, tile: Tile, number: int, rows: int, differences: int) -> None:
    into, before, x, wt, following = _given(code, "%memory", "%memory", "%s", "%wt", "%next")
    cells = list(every(range(rows), range(tile.vectors)))
    sums = {cell: code.load_at(before, place * code.lanes) for place, cell in enumerate(cells)}
    less = [f"%given.{5 + place}" for place in range(differences)]

    def weights(pointer: str, elements: int, less: Sequence[str] = less) -> str:
        if not less:
            return code.load_at(pointer, elements)
        first, *others = less
        value = weights(pointer, elements, others)
        return code.subtract(value, weights(code.advance(pointer, first), elements, others))

    sums = product.multiplied(
        code,
        sums,
        Operands(x, wt, following),
        stride=tile.row,
        columns=tile.columns,
        channels=tile.depth,
        unrolled=tile.unrolled,
        ahead=tile.ahead,
        weights=weights,
        number=f".{number}.",
        behind=f"kind.{number}",
    )
    for place, cell in enumerate(cells):
        code.store(sums[cell], code.behind(into, place * code.lanes))


def _sum(code: Code, tile: Tile, number: int, elements: int) -> None:
    pointers = _given(code, "%memory", "%memory", "%memory")
    before, code.lines = code.lines, []
    names = [f"%{name}.{number}" for name in ("into", "one", "other")]
    one, other = (code.load_at(name, 0) for name in names[1:])
    code.store(code.add(one, other), names[0])
    phis = [("i32", f"%turn.{number}", str(elements // code.lanes), f"%left.{number}")]
    phis += [
        ("ptr", name, first, code.behind(name, code.lanes))
        for name, first in zip(names, pointers, strict=True)
    ]
    turn = code.lines
    code.lines = [*before, *looped(phis, turn, number=f".{number}", behind=f"kind.{number}")]


def _rest(code: Code, tile: Tile, number: int, rows: int) -> None:
    y, sums, bias = _given(code, "%y", "%memory", "%bias")
    biases = [code.load_at(bias, vector * code.lanes) for vector in range(tile.vectors)]
    for place, (row, vector) in enumerate(every(range(rows), range(tile.vectors))):
        value = code.add(code.load_at(sums, place * code.lanes), biases[vector])
        done = code.activate(value, tile.activation)
        code.store(done, code.behind(y, row * tile.below + vector * code.lanes))
