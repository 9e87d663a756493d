"""The product of pixels and packed weights as `kernels.te.strassen` has it, x86.

Tiling  A tile is 2**LEVELS by as many of `kernels.te.avx.product`, with as many parts of all
        channels of the output between one and the next: a loop for each product, over a part of the
        channels of the input. Sums stay in registers from one to the next where they can; what
        waits is in a buffer of the task's own, u. The sums of pixels, s, are made first, for all
        tiles of a task; those of weights, t, for a block of them, before all tiles that it is for:
        packed with the weights they would be two or three times as many, which do not fit L3.
        Tiles are as high as can be alike: a pixel that has none below it in the next tile sees that
        one's last, and nothing of it is left in y.
Limits  Ci and Co are 2**LEVELS whole vectors, or a multiple of them, and a task has as many pixels.
Source  own; for sums that are made beside a product in registers Huang, Smith, Henry and van de
        Geijn, "Strassen's Algorithm Reloaded", 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, blocks
from kernels.te import product as packing
from kernels.te.avx import product
from kernels.te.avx.product import Cells, Operands, Run
from kernels.te.llvm.code import Code, isa_of
from kernels.te.strassen import (
    PRODUCTS,
    STEPS,
    End,
    Place,
    Side,
    factors,
    halved,
    levels_of,
    of_pixels,
    of_weights,
    sums,
    waiting,
    waiting_tiles,
    worthwhile,
)
from kernels.workload import Pointwise
from targets.target import Target

OF_PIXELS = """
for t in range({start}, {stop}):
    T.evaluate(T.call_extern("int32", "{name}", {s}, {x}))
"""
OF_WEIGHTS = """
T.evaluate(
    T.call_extern("int32", "{name}", wt_sums.access_ptr("w"), T.address_of(wt[{block}, 0, 0]))
)
"""
BUFFERS = """
x_sums = T.sblock_alloc_buffer(({of_pixels},), "{dtype}")
wt_sums = T.sblock_alloc_buffer(({of_weights},), "{dtype}")
waiting = T.sblock_alloc_buffer(({waiting},), "{dtype}")
"""


def supports(workload: Pointwise, target: Target) -> bool:
    return bool(_levels(workload, target))


def smallest(workload: Pointwise, target: Target) -> Pointwise:
    """A product of the most levels, whose tiles and parts all levels share."""
    return halved(workload, _levels(workload, target)[-1])


def tiles(workload: Pointwise, target: Target) -> int:
    """How many, one above the other, no task may part."""
    return 1 << _levels(workload, target)[-1]


def knobs(workload: Pointwise, target: Target) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """The knobs of the smallest product, and LEVELS."""
    least, levels = smallest(workload, target), _levels(workload, target)
    common, constraints = product.knobs(least, target)
    # Weights are kept, so that their sums are made once a task.
    common = tuple(knob for knob in common if knob.name != "KEEP")
    low = Constraint("no low tiles", lambda c: int(c["BLOCK_P"]) > 1 or least.pixels == 1)
    return (
        (*common, Knob("LEVELS", levels, worthwhile(workload, levels))),
        (*constraints, low),
    )


def _levels(workload: Pointwise, target: Target) -> tuple[int, ...]:
    return levels_of(workload, isa_of(target).lanes(workload.dtype))


def shapes(workload: Pointwise, config: Config) -> dict[str, tuple[int, ...]]:
    """Of wt and bias: a block of each part of the channels, and these blocks one by one."""
    levels, columns = int(config["LEVELS"]), int(config["BLOCK_CO"])
    B = blocks(workload.Co >> levels, columns)
    return {"wt": (B, workload.Ci << levels, columns), "bias": (B, columns << levels)}


def packed(workload: Pointwise, config: Config, wt: Array, bias: Array) -> tuple[Array, Array]:
    """wt (Ci,Co) and bias (Co,) in these shapes, channels of each part padded with zeros."""
    levels = int(config["LEVELS"])
    part = replace(workload, Co=workload.Co >> levels)
    pairs = zip(np.split(wt, 1 << levels, axis=1), np.split(bias, 1 << levels), strict=True)
    parts = [packing.packed(part, config, *pair) for pair in pairs]
    rows, biases = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    return rows, biases


def buffers(workload: Pointwise, config: Config, count: int) -> str:
    """Statements: room for the sums of so many pixels, for those of weights, and what waits."""
    levels, tall, columns = (int(config[name]) for name in ("LEVELS", "BLOCK_P", "BLOCK_CO"))
    return BUFFERS.format(
        of_pixels=blocks(count, tall << levels) * _sums_size(workload, config),
        of_weights=_number(of_weights, levels) * (workload.Ci >> levels) * columns,
        waiting=waiting_tiles(levels) * tall * columns,
        dtype=workload.dtype,
    )


def calls(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    *,
    pixels: int,
    first: str,
    parts: int,
    part: str,
    x: str,
    following: str,
    amount: int,
) -> str:
    """Statements as those of `product.calls`, and before them the ones that make the sums."""
    levels = int(config["LEVELS"])
    down = product.evenly(pixels, blocks(pixels, int(config["BLOCK_P"]) << levels))
    s = f'x_sums.access_ptr("rw", offset={{tile}} * {_sums_size(workload, config)})'
    made = []
    for run in down:
        name, codes[name] = _sums_of_pixels(workload, target, levels, run)
        where = {"s": s.format(tile="t"), "x": x.format(pixel=run.first)}
        made.append(OF_PIXELS.strip().format(start=run.start, stop=run.stop, name=name, **where))

    def code(down: Run, across: Run, ahead: int) -> tuple[str, str]:
        return _Tile(workload, config, target, down, across, ahead).function()

    name, codes[name] = _sums_of_weights(workload, config, target)
    multiplied = product.tiled(
        config | {"KEEP": "weights"},
        codes,
        code,
        down=down,
        channels=(workload.Co >> levels) // parts,
        turns=PRODUCTS**levels * (workload.Ci >> levels) // int(config["UNROLL_CI"]),
        depth=workload.Ci << levels,
        first=first,
        part=part,
        before=OF_WEIGHTS.strip().format(name=name, block="{block}"),
        x=f'{x}, {s}, wt_sums.access_ptr("r"), waiting.access_ptr("rw")',
        following=following,
        amount=amount,
    )
    return "\n".join([*made, multiplied])


def _sums_size(workload: Pointwise, config: Config) -> int:
    """Elements of the sums of a tile's pixels."""
    levels = int(config["LEVELS"])
    return _number(of_pixels, levels) * int(config["BLOCK_P"]) * (workload.Ci >> levels)


def _number(side: Side, levels: int) -> int:
    return sum(one is not None for one in sums(side, levels))


def _heights(run: Run, levels: int) -> list[int]:
    """Pixels of the tiles one above the other, the highest first."""
    number = 1 << levels
    return [blocks(run.size - tile, number) for tile in range(number)]


def _sums_of_pixels(workload: Pointwise, target: Target, levels: int, run: Run) -> tuple[str, str]:
    """Name and code of `int (s, x)`, which makes the sums of a tile's pixels, a matrix each."""
    code, heights = Code(isa_of(target), workload.dtype), _heights(run, levels)
    part, tops = workload.Ci >> levels, np.cumsum([0, *heights])
    for row in range(heights[0]):
        lines = [int(top) + min(row, high - 1) for top, high in zip(tops, heights, strict=False)]
        square = [
            [code.load_at("%x.now", line * workload.Ci + k * part) for k in range(1 << levels)]
            for line in lines
        ]
        _store_sums(code, of_pixels, levels, square, "%s.now", heights[0] * part, row * part)
    return _over_vectors(code, part // code.lanes, "%s", "%x")


def _sums_of_weights(workload: Pointwise, config: Config, target: Target) -> tuple[str, str]:
    """Name and code of `int (t, wt)`, which makes the sums of a block's weights, a matrix each."""
    code, levels = Code(isa_of(target), workload.dtype), int(config["LEVELS"])
    part = (workload.Ci >> levels) * int(config["BLOCK_CO"])
    square = [
        [
            code.load_at("%wt.now", ((across << levels) + down) * part)
            for across in range(1 << levels)
        ]
        for down in range(1 << levels)
    ]
    _store_sums(code, of_weights, levels, square, "%t.now", part, 0)
    return _over_vectors(code, part // code.lanes, "%t", "%wt")


def _store_sums(
    code: Code,
    side: Side,
    levels: int,
    square: Sequence[Sequence[str]],
    pointer: str,
    size: int,
    offset: int,
) -> None:
    """Make the sums of these vectors, and store each there, matrices of `size` apart."""
    made = factors(side, square, code.add, code.subtract)
    for value, number in zip(made, sums(side, levels), strict=True):
        if number is not None:
            code.store(value, code.behind(pointer, number * size + offset))


def _over_vectors(code: Code, turns: int, *pointers: str) -> tuple[str, str]:
    """Name and code of a function: the lines so often, a vector further on each time."""
    phis = [("i32", "%turn", str(turns), "%left")]
    phis += [
        ("ptr", f"{name}.now", name, code.behind(f"{name}.now", code.lanes)) for name in pointers
    ]
    code.loop(phis, before=[], turn=code.lines, after=[])
    return code.function([f"ptr {name}" for name in pointers])


Address = tuple[str, int]  # a pointer, and elements behind it
Start = Callable[[Iterable[Place], Place], Cells]  # of cells of a tile
Finish = Callable[[Cells, Place], None]


class _Tile:
    """Makes the code of 2**levels by as many tiles of y; each is known by its row and column.

    ahead  elements from `next` on that a turn of a loop asks for
    """

    def __init__(
        self,
        workload: Pointwise,
        config: Config,
        target: Target,
        run: Run,
        across: Run,
        ahead: int,
    ) -> None:
        self._code = Code(isa_of(target), workload.dtype)
        self._workload, self._levels, self._ahead = workload, int(config["LEVELS"]), ahead
        self._part, self._heights = halved(workload, self._levels), _heights(run, self._levels)
        self._columns, self._unrolled = int(config["BLOCK_CO"]), int(config["UNROLL_CI"])
        self._vectors = across.size // self._code.lanes
        self._reads, self._product = Operands("%x", "%wt", "%next"), 0
        self._pixels, self._weights = self._left(), self._right()

    def function(self) -> tuple[str, str]:
        """Name and code of `int (y, x, s, t, u, wt, bias, next)`."""
        self._code.lines = ["start:"]
        self._multiply(self._levels, (0, 0), None, [self._finish])
        return self._code.function(
            [f"ptr %{name}" for name in ("y", "x", "s", "t", "u", "wt", "bias", "next")]
        )

    def _multiply(
        self, level: int, first: Place, start: Start | None, finishes: Sequence[Finish]
    ) -> None:
        """Make 2**level by as many tiles from `first` on; what they start from is added."""
        if level == 0:
            cells = self._cells(first)
            sums = start(cells, first) if start else dict.fromkeys(cells, "zeroinitializer")
            sums = self._loop(sums)
            for finish in finishes:
                finish(sums, first)
            return
        size = 1 << (level - 1)
        for step in STEPS:
            self._multiply(
                level - 1,
                (first[0] + step.down * size, first[1]),
                partial(self._waiting, level - 1, step.start) if step.start else None,
                [partial(self._end, level - 1, first, start, finishes, end) for end in step.ends],
            )

    def _end(
        self,
        level: int,
        first: Place,
        start: Start | None,
        finishes: Sequence[Finish],
        end: End,
        sums: Cells,
        tile: Place,
    ) -> None:
        """Let the sums, of a tile of 2**level by as many, become what they shall."""
        inside, size = tile, 1 << level
        if not isinstance(end.becomes, str):
            row, column = (
                begin + part * size + at % size
                for begin, part, at in zip(first, end.becomes, tile, strict=True)
            )
            tile = (row, column)
            sums = {cell: sums[cell] for cell in self._cells(tile)}
        if end.plus:
            sums = self._plus(sums, self._waiting(level, end.plus, sums, inside))
        if isinstance(end.becomes, str):
            for cell, value in sums.items():
                self._code.store(value, self._kept(level, end.becomes, cell, tile))
            return
        if start:
            sums = self._plus(sums, start(sums, tile))
        for finish in finishes:
            finish(sums, tile)

    def _loop(self, sums: Cells) -> Cells:
        """The sums and the next product."""
        number = self._product
        (x, stride), wt = self._pixels[number], self._weights[number]
        sums, self._reads = product.multiplied(
            self._code,
            sums,
            self._reads._replace(x=self._code.behind(*x), wt=self._code.behind(*wt)),
            stride=stride,
            columns=self._columns,
            channels=self._part.Ci,
            unrolled=self._unrolled,
            ahead=self._ahead,
            number=f".{number}.",
            behind=f"end.{number - 1}." if number else "start",
        )
        self._product += 1
        return sums

    def _left(self) -> list[tuple[Address, int]]:
        """Where each product's pixels begin, and elements from one to the next."""
        Ci, part, size = self._workload.Ci, self._part.Ci, 1 << self._levels
        tops = [sum(self._heights[:tile]) for tile in range(size)]
        square = [[(("%x", top * Ci + k * part), Ci) for k in range(size)] for top in tops]
        return self._found(
            of_pixels, square, lambda number: (("%s", number * self._heights[0] * part), part)
        )

    def _right(self) -> list[Address]:
        """Where each product's weights begin."""
        size, part = 1 << self._levels, self._part.Ci * self._columns
        square = [
            [("%wt", (across * size + down) * part) for across in range(size)]
            for down in range(size)
        ]
        return self._found(of_weights, square, lambda number: ("%t", number * part))

    def _found(self, side: Side, square: Any, summed: Callable[[int], Any]) -> list[Any]:
        """Of each factor the part of a matrix that it is, or what `summed` says of its number."""
        parts = factors(side, square, lambda one, other: None, lambda one, other: None)
        numbers = sums(side, self._levels)
        return [
            part if number is None else summed(number)
            for part, number in zip(parts, numbers, strict=True)
        ]

    def _cells(self, tile: Place) -> list[Place]:
        """Rows and vectors of a tile."""
        rows = range(self._heights[tile[0]])
        return [(row, vector) for row in rows for vector in range(self._vectors)]

    def _kept(self, level: int, name: str, cell: Place, tile: Place) -> str:
        """Where a cell of u or v waits."""
        size = 1 << level
        number = waiting(self._levels)[level, name] + tile[0] % size * size + tile[1] % size
        row, vector = cell
        row += number * self._heights[0]
        return self._code.behind("%u", row * self._columns + vector * self._code.lanes)

    def _waiting(self, level: int, name: str, cells: Iterable[Place], tile: Place) -> Cells:
        return {cell: self._code.load_at(self._kept(level, name, cell, tile), 0) for cell in cells}

    def _plus(self, sums: Cells, others: Cells) -> Cells:
        return {cell: self._code.add(value, others[cell]) for cell, value in sums.items()}

    def _finish(self, sums: Cells, tile: Place) -> None:
        """Add the bias, and store a tile of y."""
        code, (down, right) = self._code, tile
        top, left = sum(self._heights[:down]), right * self._part.Co
        for (row, vector), value in sums.items():
            bias = code.load_at("%bias", right * self._columns + vector * code.lanes)
            done = code.activate(code.add(value, bias), self._workload.activation)
            at = (top + row) * self._workload.Co + left + vector * code.lanes
            code.store(done, code.behind("%y", at))
