"""The product of pixels and packed weights in seven products of halves instead of eight, x86.

Maths   Pixels, their channels and the channels of the output are cut in two,
            x = (x11 x12)  wt = (wt11 wt12)  y = (y11 y12)
                (x21 x22)       (wt21 wt22)      (y21 y22)
        and with the sums
            s1 = x21 + x22   t1 = wt22 - t2
            s2 = s1 - x11    t2 = wt22 - wt12 + wt11
            s3 = x11 - x21   t3 = t2 - wt11
            s4 = x12 - s2    t4 = wt21 - t2
        each sum of products goes on where one before it left off:
            u = x11 wt11      y11 = u + x12 wt21
            u = u + s2 t2     v   = u + s3 t3     y21 = v + x22 t4
            w = s1 t1         y22 = v + w         y12 = u + w + s4 wt22
        Each product is made in the same way of products of its own halves, LEVELS times in all.
Shapes  with Q = 2**LEVELS  wt (Co/Q/BLOCK_CO,Q*Ci,BLOCK_CO), a block of each of wt11, wt21, wt22
        and t2 one after the other, in place of wt12; bias (Co/Q/BLOCK_CO,Q*BLOCK_CO)
Tiling  A tile is Q of `kernels.te.avx.product` of pixels, one above the other, and Q of channels,
        Co/Q apart: a loop for each of 7**LEVELS products, over Ci/Q channels of the input. Sums of
        pixels are made first, and laid out by products: those of all pixels of the task, or, where
        KEEP is pixels, of a tile. Those of weights are made in the loop, of up to 2**LEVELS loads:
        it does not wait for them, and they take no room in L2 or L3.
        Of an odd number of pixels the last one above has none below it: sums see its neighbour's
        there, and nothing of it is left in y.
Errors  Sums of both signs round more: for each level errors are up to twice as large, and within
        `kernels.tolerance` like those of one sum over all channels.
Limits  Ci and Co are Q whole vectors or a multiple of them; Q pixels a task or more.
Source  Strassen, "Gaussian Elimination is not Optimal", 1969, in the form of Winograd, 1971, with
        one factor in the basis of Karstadt and Schwartz, "Matrix Multiplication, a Little Faster",
        2017; for sums that are made beside a product in registers Huang, Smith, Henry and van de
        Geijn, "Strassen's Algorithm Reloaded", 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from textwrap import indent

import numpy as np

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, blocks
from kernels.te.avx import product
from kernels.te.avx.product import Run, Task
from kernels.te.avx.strassen import tile
from kernels.te.avx.strassen.pixels import heights_of, row_laid_out
from kernels.te.avx.strassen.steps import PRODUCTS, Tile
from kernels.te.llvm.code import Code, isa_of
from kernels.te.tile import LINE_BYTES, pad_last
from kernels.workload import ITEM_BYTES, Pointwise
from targets.target import Target

MOST_LEVELS = 2
DEEP = 64  # channels of a product, fewer of which would not be worth another level
SUMS = 4  # of pixels
BUFFER = 's = T.sblock_alloc_buffer(({elements},), "{dtype}")\n'
LAY_OUT = """
for r in range({start}, {stop}):
    T.evaluate(T.call_extern("int32", "{name}", {s}, {x}, {next}))
"""


def parts(workload: Pointwise, target: Target, pixels: int) -> dict[int, Pointwise]:
    """One of the products, by the LEVELS that leave wholes.

    pixels  that a task has at least
    """
    lanes = isa_of(target).lanes(workload.dtype)
    return {
        level: replace(
            workload,
            N=1,
            H=1,
            W=blocks(workload.pixels, 1 << level),
            Ci=workload.Ci >> level,
            Co=workload.Co >> level,
        )
        for level in range(1, MOST_LEVELS + 1)
        if pixels >> level
        and all(size % (lanes << level) == 0 for size in (workload.Ci, workload.Co))
    }


def saved(workload: Pointwise) -> int:
    """Operations of the sums that these products do without at best; a multiply-add is two."""
    needed: int = workload.macs * PRODUCTS**MOST_LEVELS // 8**MOST_LEVELS
    return 2 * (workload.macs - needed)


def knobs(
    parts: Mapping[int, Pointwise], target: Target
) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """LEVELS, and what a product of these has."""
    tiles = {level: product.tiles(part, target) for level, part in parts.items()}
    tall, wide = (
        tuple(sorted({size[axis] for found in tiles.values() for size in found})) for axis in (0, 1)
    )
    usual = max((level for level, part in parts.items() if part.Ci >= DEEP), default=min(parts))
    rows, columns = tiles[usual][0]

    def not_low(config: Config) -> bool:
        return int(config["BLOCK_P"]) > 1 or parts[int(config["LEVELS"])].pixels == 1

    def whole(config: Config) -> bool:
        return (config["BLOCK_P"], config["BLOCK_CO"]) in tiles[int(config["LEVELS"])]

    return (
        (
            Knob("LEVELS", tuple(parts), usual),
            Knob("BLOCK_P", tall, rows),
            Knob("BLOCK_CO", wide, columns),
            *product.LOOP,
        ),
        (
            Constraint("register tile", whole),
            Constraint("no low tiles", not_low),
        ),
    )


def shapes(workload: Pointwise, config: Config) -> dict[str, tuple[int, ...]]:
    """Of wt and bias, packed."""
    level, columns = int(config["LEVELS"]), int(config["BLOCK_CO"])
    B = blocks(workload.Co >> level, columns)
    return {"wt": (B, workload.Ci << level, columns), "bias": (B, columns << level)}


def packed(workload: Pointwise, config: Config, wt: Array, bias: Array) -> tuple[Array, Array]:
    """wt (Ci,Co) and bias (Co,) in these shapes, channels of each part padded with zeros."""
    level, columns = int(config["LEVELS"]), int(config["BLOCK_CO"])
    filters = pad_last(np.stack(list(basis(wt, level))), columns)
    biases = pad_last(bias.reshape(1 << level, -1), columns).astype(workload.dtype)
    blocked = filters.reshape(*filters.shape[:2], -1, columns).transpose(2, 0, 1, 3)
    beside = biases.reshape(1 << level, -1, columns).transpose(1, 0, 2)
    of_wt, of_bias = shapes(workload, config).values()
    return blocked.reshape(of_wt), beside.reshape(of_bias)


def basis(wt: Array, level: int) -> Iterator[Array]:
    """What all factors are differences of, in the order of the packed weights."""
    if not level:
        yield wt
        return
    (wt11, wt12), (wt21, wt22) = (np.split(rows, 2, axis=1) for rows in np.split(wt, 2))
    for block in (wt11, wt21, wt22, wt22 - wt12 + wt11):
        yield from basis(block, level - 1)


def buffers(workload: Pointwise, config: Config, pixels: int) -> str:
    """Statements: room for the factors of so many pixels, or of a tile's, if these are kept."""
    rows = int(config["BLOCK_P"]) << int(config["LEVELS"])
    tiles = blocks(pixels, rows) if config["KEEP"] == "weights" else 1
    *_, elements = _sizes(workload, config)
    return BUFFER.format(elements=tiles * elements, dtype=workload.dtype)


def calls(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    task: Task,
) -> str:
    """Statements as those of `product.calls`, and before them those that lay out the factors."""
    level, unrolled = int(config["LEVELS"]), int(config["UNROLL_CI"])
    row, factor, together = _sizes(workload, config)
    down = _tiles(task.pixels, int(config["BLOCK_P"]) << level, 1 << level)
    s = f"{{tile}} * {together}" if config["KEEP"] == "weights" else "0"

    def lay_out(run: Run) -> str:
        return _lay_out(workload, config, target, codes, task, run, s.format(tile="t"))

    def code(pixels: Run, channels: Run, ahead: int) -> tuple[str, str]:
        code = Code(isa_of(target), workload.dtype)
        return tile.coded(
            code,
            Tile(
                heights=heights_of(pixels.size, level),
                vectors=channels.size // code.lanes,
                depth=workload.Ci >> level,
                x=workload.Ci,
                s=(row, factor),
                columns=int(config["BLOCK_CO"]),
                y=(workload.Co, workload.Co >> level),
                unrolled=unrolled,
                ahead=ahead,
                activation=workload.activation,
            ),
        )

    multiplied = product.tiled(
        config,
        codes,
        code,
        task,
        down=down,
        channels=(workload.Co >> level) // task.parts,
        turns=PRODUCTS**level * (workload.Ci >> level) // unrolled,
        depth=workload.Ci << level,
        x=f'{task.x}, s.access_ptr("r", offset={s})',
        before=lay_out if config["KEEP"] == "pixels" else None,
    )
    if config["KEEP"] == "pixels":
        return multiplied
    loops = (
        f"for t in range({run.start}, {run.stop}):\n{indent(lay_out(run), ' ' * 4)}" for run in down
    )
    return "\n".join([*loops, multiplied])


def _lay_out(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    task: Task,
    run: Run,
    first: str,
) -> str:
    """Statements that lay out the factors of tile t, and ask for the first block of weights.

    first  element of s that they begin at, an expression
    """
    level, columns = int(config["LEVELS"]), int(config["BLOCK_CO"])
    row, factor, _ = _sizes(workload, config)
    heights, depth = heights_of(run.size, level), workload.Ci >> level
    block = (workload.Ci << level) * columns
    vectors = depth // isa_of(target).lanes(workload.dtype)
    ahead = blocks(block, heights[0] * vectors) if config["PREFETCH"] == "weights" else 0
    first_block = f"{task.part} * {blocks((workload.Co >> level) // task.parts, columns) * block}"
    rows = [
        row_laid_out(
            Code(isa_of(target), workload.dtype),
            heights,
            number,
            pixel=workload.Ci,
            depth=depth,
            factor=factor,
            ahead=ahead,
        )
        for number in range(heights[0])
    ]
    statements, start = [], 0
    for (name, codes[name]), alike in groupby(rows):
        stop = start + len(list(alike))
        statements.append(
            LAY_OUT.strip().format(
                start=start,
                stop=stop,
                name=name,
                s=f's.access_ptr("w", offset={first} + r * {row})',
                x=task.x.format(pixel=f"{run.first} + r"),
                next=f'wt.access_ptr("r", offset={first_block} + r * {vectors * ahead})',
            )
        )
        start = stop
    return "\n".join(statements)


def _sizes(workload: Pointwise, config: Config) -> tuple[int, int, int]:
    """Elements of a row of a factor of pixels, of a factor, and of all that are laid out.

    A row has more than its channels: so the next one takes another place in L1.
    """
    level = int(config["LEVELS"])
    row = (workload.Ci >> level) + LINE_BYTES // ITEM_BYTES[workload.dtype]
    factor = int(config["BLOCK_P"]) * row
    return row, factor, factor * (SUMS if level == 1 else PRODUCTS**level)


def _tiles(pixels: int, rows: int, register_tiles: int) -> list[Run]:
    """Of so many rows at most; but in the last one all register tiles are equally high."""
    count, left = blocks(pixels, rows), pixels % register_tiles
    runs = [
        Run(run.start, run.stop, run.size * register_tiles, f"({run.first}) * {register_tiles}")
        for run in product.evenly(pixels // register_tiles, count)
    ]
    if left:
        *_, last = runs
        runs[-1:] = [
            *([last._replace(stop=count - 1)] if last.start < count - 1 else []),
            last._replace(start=count - 1, size=last.size + left),
        ]
    return runs
