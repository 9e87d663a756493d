"""A tile of the product in `kernels.te.avx.strassen`, in straight code of seven loops at a time.

In such a group, the products of the last level, sums stay in registers from one loop to the next.
With one level a tile is a group. With more it is seven, of few kinds, and their sums: the steps are
a table, and each kind has its code once, so that a core's cache of instructions holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product as every
from typing import NamedTuple

from kernels.te.avx import product
from kernels.te.avx.product import Cells, Operands
from kernels.te.llvm.code import Code, looped
from kernels.te.tile import LINE_BYTES

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
        """Of the highest register tile."""
        return self.heights[0] * self.vectors


class Factor(NamedTuple):
    """Of pixels: where it begins, and from a row to the next."""

    begin: str
    stride: int


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


def coded(code: Code, tile: Tile) -> tuple[str, str]:
    """Name and code of `int (y, x, s, wt, bias, next)`, which makes a tile.

    s     with one level, s1 to s4; with more, the factors of all products as they come
    next  from where on the loops ask for what comes next
    """
    if len(tile.heights) == 2:
        _one_group(code, tile)
    else:
        _in_steps(code, tile)
    return code.function([f"ptr %{name}" for name in ("y", "x", "s", "wt", "bias", "next")])


def _one_group(code: Code, tile: Tile) -> None:
    """Be the code of a tile of one level."""
    (upper, _), (stride, size) = tile.heights, tile.s
    _begin(code, WAITING * tile.cells)
    x11, x12, x22 = (
        Factor(code.behind("%x", element), tile.x)
        for element in (0, tile.depth, upper * tile.x + tile.depth)
    )
    s1, s2, s3, s4 = (Factor(code.behind("%s", number * size), stride) for number in range(4))

    def finish(place: int, sums: Cells) -> None:
        down, right = divmod(place, 2)
        y = code.behind("%y", down * upper * tile.y[0] + right * tile.y[1])
        _finish(code, tile, sums, y, code.behind("%bias", right * tile.columns))

    _group(code, tile, tile.heights, (x11, x12, s2, s3, x22, s1, s4), done=finish)


def _in_steps(code: Code, tile: Tile) -> None:
    """Be the code of a tile of several levels."""
    steps = Steps(tile, code.lanes)
    kinds = list(dict.fromkeys(step.kind for step in steps.found))
    makers = {"group": _step_of_group, "sum": _step_of_sum, "rest": _step_of_rest}
    made = []
    for number, (kind, *sizes) in enumerate(kinds):
        code.lines = [f"kind.{number}:"]
        makers[kind](code, tile, number, *sizes)
        made.append(code.lines)
    _begin(code, steps.memory)
    code.steps(
        [
            (kinds.index(step.kind), *(elements * code.item_bytes for elements in step.given))
            for step in steps.found
        ],
        made,
    )


def _begin(code: Code, vectors: int) -> None:
    """With so much memory."""
    code.lines = ["start:", f"%memory = alloca [{vectors} x {code.vector}], align {LINE_BYTES}"]


class Steps:
    """The work on a tile of several levels, as `found`, and how many vectors of `memory` it takes."""

    def __init__(self, tile: Tile, lanes: int) -> None:
        self.found: list[Step] = []
        self.memory = WAITING * tile.cells
        self._tile, self._lanes, self._groups = tile, lanes, 0
        self._waiting = {}
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
            places = ((before or into).at * self._lanes, into.at * self._lanes)
            x = PRODUCTS * self._groups * tile.s[1]
            asked = PRODUCTS * self._groups * _asked(tile)
            kind = ("group", *into.heights, int(before is not None), len(less))
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


def _given(code: Code, *pointers: str) -> list[str]:
    """The operands of a step."""
    return [code.advance(name, f"%given.{place}") for place, name in enumerate(pointers)]


def _step_of_group(
    code: Code, tile: Tile, number: int, upper: int, lower: int, continued: int, differences: int
) -> None:
    before, into, s, wt, following = _given(code, "%memory", "%memory", "%s", "%wt", "%next")
    stride, size = tile.s

    def at(pointer: str, place: int, sums: Cells) -> Iterator[str]:
        first = code.behind(pointer, place * tile.cells * code.lanes)
        return _addresses(code, tile, first, sums)

    def from_before(place: int, sums: Cells) -> Cells:
        if not continued:
            return sums
        return {
            cell: code.add(value, code.load_at(address, 0))
            for (cell, value), address in zip(sums.items(), at(before, place, sums), strict=True)
        }

    def keep(place: int, sums: Cells) -> None:
        for value, address in zip(sums.values(), at(into, place, sums), strict=True):
            code.store(value, address)

    _group(
        code,
        tile,
        (upper, lower),
        [Factor(code.behind(s, place * size), stride) for place in range(PRODUCTS)],
        done=keep,
        plus=from_before,
        wt=wt,
        following=following,
        less=[f"%given.{5 + place}" for place in range(differences)],
        name=f"{number}.",
        behind=f"kind.{number}",
    )


def _step_of_sum(code: Code, tile: Tile, number: int, vectors: int) -> None:
    pointers = _given(code, "%memory", "%memory", "%memory")
    before, code.lines = code.lines, []
    names = [f"%{name}.{number}" for name in ("into", "one", "other")]
    one, other = (code.load_at(name, 0) for name in names[1:])
    code.store(code.add(one, other), names[0])
    phis = [("i32", f"%turn.{number}", str(vectors), f"%left.{number}")]
    phis += [
        ("ptr", name, first, code.behind(name, code.lanes))
        for name, first in zip(names, pointers, strict=True)
    ]
    loop = looped(phis, code.lines, number=f".{number}", behind=f"kind.{number}")
    code.lines = [*before, *loop]


def _step_of_rest(code: Code, tile: Tile, number: int, rows: int) -> None:
    y, memory, bias = _given(code, "%y", "%memory", "%bias")
    cells = list(every(range(rows), range(tile.vectors)))
    sums = dict(zip(cells, _loaded(code, tile, memory, cells), strict=True))
    _finish(code, tile, sums, y, bias)


def _group(
    code: Code,
    tile: Tile,
    heights: tuple[int, ...],
    pixels: Sequence[Factor],
    *,
    done: Callable[[int, Cells], None],
    plus: Callable[[int, Cells], Cells] = lambda _, sums: sums,
    wt: str = "%wt",
    following: str = "%next",
    less: Sequence[str] = (),
    name: str = "",
    behind: str = "start",
) -> None:
    """The seven products, each a loop.

    pixels  their factors
    done    what becomes of the sums of y11, y12, y21 and y22, by number
    plus    the same sums and those that were there before
    less    bytes from each factor of weights to what is subtracted from it, and so on
    name    of the loops, behind the label `behind`
    """
    quarter = tile.depth * tile.columns
    products = iter(enumerate(zip(pixels, FACTORS, strict=True)))
    end = behind

    def times(sums: Cells) -> Cells:
        """The sums and the next product."""
        nonlocal end
        number, (factor, (block, other)) = next(products)

        def weights(pointer: str, elements: int) -> str:
            value = _less(code, pointer, elements, less)
            if other is None:
                return value
            apart = (other - block) * quarter
            return code.subtract(value, _less(code, pointer, elements + apart, less))

        sums = product.multiplied(
            code,
            sums,
            Operands(
                factor.begin,
                code.behind(wt, block * quarter),
                code.behind(following, number * _asked(tile)),
            ),
            stride=factor.stride,
            columns=tile.columns,
            channels=tile.depth,
            unrolled=tile.unrolled,
            ahead=tile.ahead,
            weights=weights,
            number=f".{name}{number}.",
            behind=end,
        )
        end = f"end.{name}{number}."
        return sums

    def wait(sums: Cells, place: int) -> Cells:
        first = code.behind("%memory", place * tile.cells * code.lanes)
        for value, address in zip(sums.values(), _addresses(code, tile, first, sums), strict=True):
            code.store(value, address)
        return sums

    def waiting(cells: Iterable[tuple[int, int]], place: int) -> Cells:
        first = code.behind("%memory", place * tile.cells * code.lanes)
        return dict(zip(cells, _loaded(code, tile, first, cells), strict=True))

    upper, lower = (list(every(range(rows), range(tile.vectors))) for rows in heights)
    zeros = dict.fromkeys(upper, "zeroinitializer")

    u = wait(times(zeros), 0)
    done(0, times(plus(0, u)))
    u = wait(times(waiting(upper, 0)), 0)
    v = wait(times({cell: u[cell] for cell in lower}), 1)
    done(2, times(plus(2, v)))
    w = times(zeros)
    v = waiting(lower, 1)
    done(3, plus(3, {cell: code.add(v[cell], w[cell]) for cell in lower}))
    u = waiting(upper, 0)
    done(1, times(plus(1, {cell: code.add(u[cell], w[cell]) for cell in upper})))


def _asked(tile: Tile) -> int:
    """Elements that a product asks for."""
    return tile.depth // tile.unrolled * tile.ahead


def _less(code: Code, pointer: str, elements: int, less: Sequence[str]) -> str:
    """The vector so many elements further on, less what is so many bytes away, and so on."""
    if not less:
        return code.load_at(pointer, elements)
    first, *others = less
    value = _less(code, pointer, elements, others)
    return code.subtract(value, _less(code, code.advance(pointer, first), elements, others))


def _addresses(
    code: Code, tile: Tile, first: str, cells: Iterable[tuple[int, int]]
) -> Iterator[str]:
    """Of the cells of a register tile, which begins at `first`."""
    for row, vector in cells:
        yield code.behind(first, (row * tile.vectors + vector) * code.lanes)


def _loaded(code: Code, tile: Tile, first: str, cells: Iterable[tuple[int, int]]) -> Iterator[str]:
    for address in _addresses(code, tile, first, cells):
        yield code.load_at(address, 0)


def _finish(code: Code, tile: Tile, sums: Cells, y: str, bias: str) -> None:
    """Add the bias, activate, and let sums be a part of y."""
    for (row, vector), value in sums.items():
        added = code.add(value, code.load_at(bias, vector * code.lanes))
        done = code.activate(added, tile.activation)
        code.store(done, code.behind(y, row * tile.y[0] + vector * code.lanes))
