"""The product of pixels and weights in seven products of halves instead of eight, x86.

Maths   Pixels, their channels and the channels of the output are cut in two,
            x = (x11 x12)  wt = (wt11 wt12)  y = (y11 y12)
                (x21 x22)       (wt21 wt22)      (y21 y22)
        and with these sums, the left ones of pixels, the right ones of weights, packed with them,
            s1 = x21 + x22   t1 = wt12 - wt11
            s2 = s1 - x11    t2 = wt22 - t1
            s3 = x11 - x21   t3 = wt22 - wt12
            s4 = x12 - s2    t4 = t2 - wt21
        each sum of products goes on where one before it left off:
            p = x11 wt11          y11 = p + x12 wt21
            u = p + s2 t2         v   = u + s3 t3     y21 = v - x22 t4
            w = s1 t1             y22 = v + w         y12 = u + w + s4 wt22
Tiling  A tile is two of `kernels.te.avx.product` of pixels, one above the other, and two of
        channels, half of all apart: seven loops, each over half of the channels of the input. What
        waits for a later loop, p and then u, and v, waits in y, where y12 and y22 will be. The sums
        of pixels are made first, for all tiles of a task. Of an odd number of pixels the last one
        above has none below it: s1 to s4 see its neighbour's there, and nothing of it is left in y.
Types   float32. Sums of both signs round more: an error is about twice that of one sum over all
        channels, and within `kernels.tolerance` like that.
Limits  Ci and Co are two whole vectors or a multiple of them; two pixels a task or more.
Source  Strassen, "Gaussian Elimination is not Optimal", 1969, as written by Winograd, 1971; for
        the sums that are made beside a product in registers Huang, Smith, Henry and van de Geijn,
        "Strassen's Algorithm Reloaded", 2016.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, blocks
from kernels.te import product as packing
from kernels.te.avx import product
from kernels.te.avx.product import Cells, Operands, Run
from kernels.te.llvm.code import Code, isa_of
from kernels.workload import Pointwise
from targets.target import Target

PRODUCTS, SUMS = 7, 4
MAKE_SUMS = """
for t in range({start}, {stop}):
    T.evaluate(T.call_extern("int32", "{name}", {s}, {x}))
"""


def supports(workload: Pointwise, target: Target) -> bool:
    """Whether its halves are whole vectors, on such a machine."""
    lanes = isa_of(target).lanes(workload.dtype)
    return all(size % (2 * lanes) == 0 for size in (workload.Ci, workload.Co))


def halves(workload: Pointwise) -> Pointwise:
    """One of the products."""
    pixels = blocks(workload.pixels, 2)
    return replace(workload, N=1, H=1, W=pixels, Ci=workload.Ci // 2, Co=workload.Co // 2)


def saved(workload: Pointwise) -> int:
    """Operations that the sums have, and this product has not."""
    return 2 * workload.macs * (8 - PRODUCTS) // 8


def knobs(workload: Pointwise, target: Target) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """Those of one of the products."""
    return product.knobs(halves(workload), target)


def shapes(workload: Pointwise, config: Config) -> dict[str, tuple[int, ...]]:
    """Of wt, the products' rows in their order, and of bias, that of both halves of y."""
    columns, half = int(config["BLOCK_CO"]), halves(workload)
    B = blocks(half.Co, columns)
    return {"wt": (B, PRODUCTS * half.Ci, columns), "bias": (B, 2 * columns)}


def packed(workload: Pointwise, config: Config, wt: Array, bias: Array) -> tuple[Array, Array]:
    """wt (Ci,Co) and bias (Co,) in these shapes, channels of each half padded with zeros."""
    half = halves(workload)
    (wt11, wt12), (wt21, wt22) = (
        np.split(rows, 2, axis=1) for rows in np.split(wt.astype(np.float64), 2)
    )
    t1 = wt12 - wt11
    t2 = wt22 - t1
    factors = (wt11, wt21, t2, wt22 - wt12, wt21 - t2, t1, wt22)
    left, right = np.split(bias, 2)
    blocked = [packing.packed(half, config, factor, left)[0] for factor in factors]
    biases = [packing.packed(half, config, wt11, part)[1] for part in (left, right)]
    joined = np.concatenate(blocked, axis=1).astype(workload.dtype)
    return joined, np.concatenate(biases, axis=1)


def buffer(workload: Pointwise, config: Config, pixels: int) -> str:
    """A statement: room for the sums of so many pixels, `s`."""
    tall = int(config["BLOCK_P"])
    size = blocks(pixels, 2 * tall) * SUMS * tall * halves(workload).Ci
    return f's = T.sblock_alloc_buffer(({size},), "{workload.dtype}")'


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
    tall, half = int(config["BLOCK_P"]), halves(workload)
    down = product.evenly(pixels, blocks(pixels, 2 * tall))
    s = f's.access_ptr("rw", offset={{tile}} * {SUMS * tall * half.Ci})'
    made = []
    for run in down:
        name, codes[name] = _sums(workload, target, run)
        where = {"s": s.format(tile="t"), "x": x.format(pixel=run.first)}
        made.append(MAKE_SUMS.strip().format(start=run.start, stop=run.stop, name=name, **where))

    def code(down: Run, across: Run, ahead: int) -> tuple[str, str]:
        return _tile(workload, config, target, down, across, ahead)

    multiplied = product.tiled(
        config,
        codes,
        code,
        down=down,
        channels=half.Co // parts,
        depth=PRODUCTS * half.Ci,
        first=first,
        part=part,
        x=f"{x}, {s}",
        following=following,
        amount=amount,
    )
    return "\n".join([*made, multiplied])


def _above_and_below(pair: Run) -> tuple[int, int]:
    """Pixels of both tiles."""
    return blocks(pair.size, 2), pair.size // 2


def _sums(workload: Pointwise, target: Target, pair: Run) -> tuple[str, str]:
    """Name and code of `int (s, x)`, which makes s2, s3, s1, s4 of a tile's pixels."""
    code = Code(isa_of(target), workload.dtype)
    Ci, half, (above, below) = workload.Ci, workload.Ci // 2, _above_and_below(pair)
    for row in range(above):
        other = above + min(row, below - 1)
        x11, x12, x21, x22 = (
            code.load_at("%x.now", pixel * Ci + channel)
            for pixel in (row, other)
            for channel in (0, half)
        )
        s1 = code.add(x21, x22)
        s2 = code.subtract(s1, x11)
        for number, value in enumerate((s2, code.subtract(x11, x21), s1, code.subtract(x12, s2))):
            code.store(value, code.behind("%s.now", (number * above + row) * half))
    phis = [("i32", "%turn", str(half // code.lanes), "%left")]
    phis += [
        ("ptr", f"{name}.now", name, code.behind(f"{name}.now", code.lanes))
        for name in ("%x", "%s")
    ]
    code.loop(phis, before=[], turn=code.lines, after=[])
    return code.function(("ptr %s", "ptr %x"))


def _tile(
    workload: Pointwise, config: Config, target: Target, pair: Run, across: Run, ahead: int
) -> tuple[str, str]:
    """Name and code of `int (y, x, s, wt, bias, next)`, which makes two tiles by two.

    ahead  elements from `next` on that a turn asks for
    """
    code = Code(isa_of(target), workload.dtype)
    Ci, Co, half = workload.Ci, workload.Co, halves(workload)
    columns, (above, below) = int(config["BLOCK_CO"]), _above_and_below(pair)
    vectors = across.size // code.lanes
    code.lines = ["start:"]
    reads = Operands("%x", "%wt", "%next")

    def multiplied(number: int, x: tuple[str, int, int], sums: Cells) -> Cells:
        """The sums and product `number`, whose pixels begin and follow each other there."""
        nonlocal reads
        pointer, begin, stride = x
        reads = reads._replace(x=code.behind(pointer, begin))
        sums, reads = product.multiplied(
            code,
            sums,
            reads,
            stride=stride,
            columns=columns,
            channels=half.Ci,
            unrolled=int(config["UNROLL_CI"]),
            ahead=ahead,
            number=str(number),
            behind=f"end{number - 1}" if number else "start",
        )
        return sums

    def of_y(cell: tuple[int, int], down: int, right: int) -> str:
        row, vector = cell
        return code.behind("%y", (down * above + row) * Co + right * half.Co + vector * code.lanes)

    def put(sums: Cells, down: int, right: int) -> None:
        """Let them wait in this part of y."""
        for cell, value in sums.items():
            code.store(value, of_y(cell, down, right))

    def waiting(cells: Iterable[tuple[int, int]], down: int, right: int) -> Cells:
        return {cell: code.load_at(of_y(cell, down, right), 0) for cell in cells}

    def finish(sums: Cells, down: int, right: int) -> None:
        bias = [
            code.load_at("%bias", right * columns + vector * code.lanes)
            for vector in range(vectors)
        ]
        done = {
            (row, vector): code.activate(code.add(value, bias[vector]), workload.activation)
            for (row, vector), value in sums.items()
        }
        put(done, down, right)

    upper = [(row, vector) for row in range(above) for vector in range(vectors)]
    lower = [(row, vector) for row, vector in upper if row < below]
    zeros = dict.fromkeys(upper, "zeroinitializer")
    s2, s3, s1, s4 = (("%s", number * above * half.Ci, half.Ci) for number in range(SUMS))

    p = multiplied(0, ("%x", 0, Ci), zeros)
    put(p, 0, 1)
    finish(multiplied(1, ("%x", half.Ci, Ci), p), 0, 0)
    u = multiplied(2, s2, waiting(upper, 0, 1))
    put(u, 0, 1)
    v = multiplied(3, s3, {cell: u[cell] for cell in lower})
    put(v, 1, 1)
    finish(multiplied(4, ("%x", above * Ci + half.Ci, Ci), v), 1, 0)
    w = multiplied(5, s1, zeros)
    v = waiting(lower, 1, 1)
    finish({cell: code.add(v[cell], w[cell]) for cell in lower}, 1, 1)
    u = waiting(upper, 0, 1)
    finish(multiplied(6, s4, {cell: code.add(u[cell], w[cell]) for cell in upper}), 0, 1)
    return code.function(("ptr %y", "ptr %x", "ptr %s", "ptr %wt", "ptr %bias", "ptr %next"))
