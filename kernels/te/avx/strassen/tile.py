"""A tile of the product in `kernels.te.avx.strassen`: code, of seven loops at a time.

In such a group sums stay in registers from one loop to the next. With one level a tile is a group.
With more it has groups of a few kinds: each kind has its code once, and the steps are a table, so
that a core's cache of instructions holds all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product as every
from typing import NamedTuple

from kernels.te.avx import product
from kernels.te.avx.product import Cells, Operands
from kernels.te.avx.strassen.steps import FACTORS, PRODUCTS, WAITING, Steps, Tile
from kernels.te.llvm.code import Code, looped
from kernels.te.tile import LINE_BYTES


class Factor(NamedTuple):
    """Of pixels: where it begins, and from a row to the next."""

    begin: str
    stride: int


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
    makers: dict[str, Callable[..., None]] = {
        "group": _step_of_group,
        "sum": _step_of_sum,
        "rest": _step_of_rest,
    }
    made = []
    for number, (kind, *sizes) in enumerate(kinds):
        code.lines = [f"kind.{number}:"]
        makers[kind](code, tile, number, *sizes)
        made.append(code.lines)
    _begin(code, steps.memory)
    for vector in range(4 * tile.cells):
        place = (steps.zeros.at + vector) * code.lanes
        code.store("zeroinitializer", code.behind("%memory", place))
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


def _given(code: Code, *pointers: str) -> list[str]:
    """The operands of a step."""
    return [code.advance(name, f"%given.{place}") for place, name in enumerate(pointers)]


def _step_of_group(
    code: Code, tile: Tile, number: int, upper: int, lower: int, differences: int
) -> None:
    before, into, s, wt, following = _given(code, "%memory", "%memory", "%s", "%wt", "%next")
    stride, size = tile.s

    def from_before(place: int, sums: Cells) -> Cells:
        there = _loaded(code, tile, _room(code, tile, before, place), sums)
        pairs = zip(sums.items(), there, strict=True)
        return {cell: code.add(value, other) for (cell, value), other in pairs}

    def keep(place: int, sums: Cells) -> None:
        _stored(code, tile, _room(code, tile, into, place), sums)

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
                code.behind(following, number * tile.asked),
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
        _stored(code, tile, _room(code, tile, "%memory", place), sums)
        return sums

    def waiting(cells: Iterable[tuple[int, int]], place: int) -> Cells:
        there = _loaded(code, tile, _room(code, tile, "%memory", place), cells)
        return dict(zip(cells, there, strict=True))

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


def _less(code: Code, pointer: str, elements: int, less: Sequence[str]) -> str:
    """The vector so many elements further on, less what is so many bytes away, and so on."""
    if not less:
        return code.load_at(pointer, elements)
    first, *others = less
    value = _less(code, pointer, elements, others)
    return code.subtract(value, _less(code, code.advance(pointer, first), elements, others))


def _room(code: Code, tile: Tile, pointer: str, place: int) -> str:
    """Where a register tile of that number behind the pointer begins."""
    return code.behind(pointer, place * tile.cells * code.lanes)


def _addresses(
    code: Code, tile: Tile, first: str, cells: Iterable[tuple[int, int]]
) -> Iterator[str]:
    """Of the cells of a register tile, which begins at `first`."""
    for row, vector in cells:
        yield code.behind(first, (row * tile.vectors + vector) * code.lanes)


def _loaded(code: Code, tile: Tile, first: str, cells: Iterable[tuple[int, int]]) -> Iterator[str]:
    for address in _addresses(code, tile, first, cells):
        yield code.load_at(address, 0)


def _stored(code: Code, tile: Tile, first: str, sums: Cells) -> None:
    for value, address in zip(sums.values(), _addresses(code, tile, first, sums), strict=True):
        code.store(value, address)


def _finish(code: Code, tile: Tile, sums: Cells, y: str, bias: str) -> None:
    """Add the bias, activate, and let sums be a part of y."""
    for (row, vector), value in sums.items():
        added = code.add(value, code.load_at(bias, vector * code.lanes))
        done = code.activate(added, tile.activation)
        code.store(done, code.behind(y, row * tile.y[0] + vector * code.lanes))
