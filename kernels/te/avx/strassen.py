"""The product of pixels and packed weights in seven products of halves instead of eight, x86.

Maths   Pixels, their channels and the channels of the output are cut in two,
            x = (x11 x12)  wt = (wt11 wt12)  y = (y11 y12)
                (x21 x22)       (wt21 wt22)      (y21 y22)
        and with the sums
            s1 = x21 + x22   t1 = wt12 - wt11
            s2 = s1 - x11    t2 = wt22 - t1
            s3 = x11 - x21   t3 = wt22 - wt12
            s4 = x12 - s2    t4 = wt21 - t2
        each sum of products goes on where one before it left off:
            u = x11 wt11      y11 = u + x12 wt21
            u = u + s2 t2     v   = u + s3 t3     y21 = v + x22 t4
            w = s1 t1         y22 = v + w         y12 = u + w + s4 wt22
Shapes  wt (Co/2/BLOCK_CO,2*Ci,BLOCK_CO), of each block of wt11 and wt21 also that of wt12 and wt22
        bias (Co/2/BLOCK_CO,2*BLOCK_CO)
Tiling  A tile is two of `kernels.te.avx.product` of pixels, one above the other, and two of
        channels, half of all apart: seven loops, each over half of the channels of the input. What
        waits for a later loop, u and v, waits in y, where y12 and y22 will be. A task makes the
        sums of all its pixels first, and those of a block of weights before the tiles that it is
        for; were they packed with the weights, fewer of these would fit L3.
        Of an odd number of pixels the last one above has none below it: sums see its neighbour's
        there, and nothing of it is left in y.
Errors  Sums of both signs round more: errors are up to twice those of one sum over all channels,
        and within `kernels.tolerance` like those.
Limits  Ci and Co are two whole vectors or a multiple of them; two pixels a task or more.
Source  Strassen, "Gaussian Elimination is not Optimal", 1969, in the form of Winograd, 1971; for
        sums that are made beside a product in registers Huang, Smith, Henry and van de Geijn,
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
from kernels.te.avx.product import Cells, Operands, Run, Task
from kernels.te.llvm.code import Code, isa_of
from kernels.workload import Pointwise
from targets.target import Target

PRODUCTS = 7
SUMS = 4  # of pixels, and of weights
BUFFERS = """
s = T.sblock_alloc_buffer(({of_pixels},), "{dtype}")
t_ = T.sblock_alloc_buffer(({of_weights},), "{dtype}")
"""
OF_PIXELS = """
for t in range({start}, {stop}):
    T.evaluate(T.call_extern("int32", "{name}", {s}, {x}))
"""
OF_WEIGHTS = """
T.evaluate(T.call_extern("int32", "{name}", t_.access_ptr("w"), T.address_of(wt[{block}, 0, 0])))
"""


def supports(workload: Pointwise, target: Target) -> bool:
    """Whether all three halves are wholes."""
    lanes = isa_of(target).lanes(workload.dtype)
    channels = (workload.Ci, workload.Co)
    return workload.pixels > 1 and all(size % (2 * lanes) == 0 for size in channels)


def halves(workload: Pointwise) -> Pointwise:
    """One of the products."""
    pixels = blocks(workload.pixels, 2)
    return replace(workload, N=1, H=1, W=pixels, Ci=workload.Ci // 2, Co=workload.Co // 2)


def saved(workload: Pointwise) -> int:
    """Operations of the sums that these products do without; a multiply-add is two."""
    return 2 * workload.macs * (8 - PRODUCTS) // 8


def knobs(workload: Pointwise, target: Target) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """Those of one of the products, but KEEP: it is weights, whose sums are made once a task."""
    half = halves(workload)
    common, constraints = product.knobs(half, target)
    low = Constraint("no low tiles", lambda c: int(c["BLOCK_P"]) > 1 or half.pixels == 1)
    return tuple(knob for knob in common if knob.name != "KEEP"), (*constraints, low)


def shapes(workload: Pointwise, config: Config) -> dict[str, tuple[int, ...]]:
    """Of wt and bias, packed."""
    columns = int(config["BLOCK_CO"])
    B = blocks(workload.Co // 2, columns)
    return {"wt": (B, 2 * workload.Ci, columns), "bias": (B, 2 * columns)}


def packed(workload: Pointwise, config: Config, wt: Array, bias: Array) -> tuple[Array, Array]:
    """wt (Ci,Co) and bias (Co,) in these shapes, channels of each half padded with zeros."""
    half = replace(workload, Co=workload.Co // 2)
    pairs = zip(np.split(wt, 2, axis=1), np.split(bias, 2), strict=True)
    filters, biases = zip(*(packing.packed(half, config, *pair) for pair in pairs), strict=True)
    return np.concatenate(filters, axis=1), np.concatenate(biases, axis=1)


def buffers(workload: Pointwise, config: Config, pixels: int) -> str:
    """Statements: room for the sums of so many pixels, and of a block of weights."""
    return BUFFERS.format(
        of_pixels=blocks(pixels, 2 * int(config["BLOCK_P"])) * _sums_size(workload, config),
        of_weights=SUMS * workload.Ci // 2 * int(config["BLOCK_CO"]),
        dtype=workload.dtype,
    )


def calls(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    task: Task,
) -> str:
    """Statements as those of `product.calls`, and those that make the sums."""
    down = product.evenly(task.pixels, blocks(task.pixels, 2 * int(config["BLOCK_P"])))
    s = f's.access_ptr("rw", offset={{tile}} * {_sums_size(workload, config)})'
    made = []
    for run in down:
        name, codes[name] = _sums_of_pixels(workload, target, run)
        where = {"s": s.format(tile="t"), "x": task.x.format(pixel=run.first)}
        made.append(OF_PIXELS.strip().format(start=run.start, stop=run.stop, name=name, **where))
    name, codes[name] = _sums_of_weights(workload, config, target)

    def code(down: Run, across: Run, ahead: int) -> tuple[str, str]:
        return _tile(workload, config, target, down, across, ahead)

    multiplied = product.tiled(
        {**config, "KEEP": "weights"},
        codes,
        code,
        task,
        down=down,
        channels=workload.Co // 2 // task.parts,
        turns=PRODUCTS * workload.Ci // 2 // int(config["UNROLL_CI"]),
        depth=2 * workload.Ci,
        x=f'{task.x}, {s}, t_.access_ptr("r")',
        before=OF_WEIGHTS.strip().format(name=name, block="{block}"),
    )
    return "\n".join([*made, multiplied])


def _sums_size(workload: Pointwise, config: Config) -> int:
    """Elements of the sums of a tile's pixels."""
    return SUMS * int(config["BLOCK_P"]) * workload.Ci // 2


def _above_and_below(pair: Run) -> tuple[int, int]:
    """Pixels of both tiles."""
    return blocks(pair.size, 2), pair.size // 2


def _sums_of_pixels(workload: Pointwise, target: Target, pair: Run) -> tuple[str, str]:
    """Name and code of `int (s, x)`, which makes s1 to s4 of a tile, (4,P/2,Ci/2)."""
    code = Code(isa_of(target), workload.dtype)
    half, (above, below) = workload.Ci // 2, _above_and_below(pair)
    for row in range(above):
        x11, x12, x21, x22 = (
            code.load_at("%x.now", pixel * workload.Ci + channel)
            for pixel in (row, above + min(row, below - 1))
            for channel in (0, half)
        )
        s1 = code.add(x21, x22)
        s2 = code.subtract(s1, x11)
        s3 = code.subtract(x11, x21)
        for number, value in enumerate((s1, s2, s3, code.subtract(x12, s2))):
            code.store(value, code.behind("%s.now", (number * above + row) * half))
    return _over_vectors(code, half, "%s", "%x")


def _sums_of_weights(workload: Pointwise, config: Config, target: Target) -> tuple[str, str]:
    """Name and code of `int (t, wt)`, which makes t1 to t4 of a block, (4,Ci/2,BLOCK_CO)."""
    code = Code(isa_of(target), workload.dtype)
    quarter = workload.Ci // 2 * int(config["BLOCK_CO"])
    wt11, wt21, wt12, wt22 = (code.load_at("%wt.now", part * quarter) for part in range(4))
    t1 = code.subtract(wt12, wt11)
    t2 = code.subtract(wt22, t1)
    t3 = code.subtract(wt22, wt12)
    for number, value in enumerate((t1, t2, t3, code.subtract(wt21, t2))):
        code.store(value, code.behind("%t.now", number * quarter))
    return _over_vectors(code, quarter, "%t", "%wt")


def _over_vectors(code: Code, elements: int, *pointers: str) -> tuple[str, str]:
    """Name and code of a function: the lines for each vector of so many elements."""
    phis = [("i32", "%turn", str(elements // code.lanes), "%left")]
    phis += [
        ("ptr", f"{name}.now", name, code.behind(f"{name}.now", code.lanes)) for name in pointers
    ]
    code.loop(phis, before=[], turn=code.lines, after=[])
    return code.function([f"ptr {name}" for name in pointers])


def _tile(
    workload: Pointwise, config: Config, target: Target, pair: Run, across: Run, ahead: int
) -> tuple[str, str]:
    """Name and code of `int (y, x, s, t, wt, bias, next)`, which makes two tiles by two.

    ahead  elements from `next` on that a turn asks for
    """
    code = Code(isa_of(target), workload.dtype)
    Ci, Co, half = workload.Ci, workload.Co, halves(workload)
    columns, (above, below) = int(config["BLOCK_CO"]), _above_and_below(pair)
    vectors, quarter = across.size // code.lanes, half.Ci * columns
    x11, x12, x22 = (("%x", at, Ci) for at in (0, half.Ci, above * Ci + half.Ci))
    s1, s2, s3, s4 = (("%s", number * above * half.Ci, half.Ci) for number in range(SUMS))
    wt11, wt21, _, wt22 = (("%wt", number * quarter) for number in range(4))
    t1, t2, t3, t4 = (("%t", number * quarter) for number in range(SUMS))
    reads, number = Operands("%x", "%wt", "%next"), 0
    code.lines = ["start:"]

    def plus(sums: Cells, x: tuple[str, int, int], wt: tuple[str, int]) -> Cells:
        """The sums and a product, from where its pixels begin and follow each other."""
        nonlocal reads, number
        pointer, begin, stride = x
        sums, reads = product.multiplied(
            code,
            sums,
            reads._replace(x=code.behind(pointer, begin), wt=code.behind(*wt)),
            stride=stride,
            columns=columns,
            channels=half.Ci,
            unrolled=int(config["UNROLL_CI"]),
            ahead=ahead,
            number=f".{number}.",
            behind=f"end.{number - 1}." if number else "start",
        )
        number += 1
        return sums

    def of_y(cell: tuple[int, int], down: int, right: int) -> str:
        row, vector = cell
        return code.behind("%y", (down * above + row) * Co + right * half.Co + vector * code.lanes)

    def wait(sums: Cells, down: int, right: int) -> None:
        for cell, value in sums.items():
            code.store(value, of_y(cell, down, right))

    def waiting(cells: Iterable[tuple[int, int]], down: int, right: int) -> Cells:
        return {cell: code.load_at(of_y(cell, down, right), 0) for cell in cells}

    def finish(sums: Cells, down: int, right: int) -> None:
        for (row, vector), value in sums.items():
            bias = code.load_at("%bias", right * columns + vector * code.lanes)
            done = code.activate(code.add(value, bias), workload.activation)
            code.store(done, of_y((row, vector), down, right))

    upper = [(row, vector) for row in range(above) for vector in range(vectors)]
    lower = [(row, vector) for row, vector in upper if row < below]
    zeros = dict.fromkeys(upper, "zeroinitializer")

    u = plus(zeros, x11, wt11)
    wait(u, 0, 1)
    finish(plus(u, x12, wt21), 0, 0)
    u = plus(waiting(upper, 0, 1), s2, t2)
    wait(u, 0, 1)
    v = plus({cell: u[cell] for cell in lower}, s3, t3)
    wait(v, 1, 1)
    finish(plus(v, x22, t4), 1, 0)
    w = plus(zeros, s1, t1)
    v = waiting(lower, 1, 1)
    finish({cell: code.add(v[cell], w[cell]) for cell in lower}, 1, 1)
    u = waiting(upper, 0, 1)
    finish(plus({cell: code.add(u[cell], w[cell]) for cell in upper}, s4, wt22), 0, 1)
    return code.function([f"ptr %{name}" for name in ("y", "x", "s", "t", "wt", "bias", "next")])
