"""A register tile's loop over channels, in LLVM's own code."""

from __future__ import annotations

from kernels.te.llvm.code import NEON, Code


def weight_steps(vectors: int, dtype: str) -> int:
    """For how many channels one load brings the weights, so many vectors for each."""
    steps = max(1, NEON.group // vectors)
    return steps if NEON.lanes(dtype) % steps == 0 else 1


def tile(rows: int, vectors: int, unrolled: int, dtype: str, *, biased: bool) -> tuple[str, str]:
    """Name and code of `int (sums, x, wt, [bias,] turns)`: a register tile's loop.

    sums      (rows,vectors) of vectors
    x         by groups of a vector's channels: (…,rows) of vectors
    wt        by channels: (…,vectors) of vectors
    bias      as sums, what they start from; zero without
    unrolled  channels that one of `turns` sums; whole groups

    It shall become a part of its caller, where `sums` is on the stack and becomes registers.
    """
    code, lanes = Code(NEON, dtype), NEON.lanes(dtype)
    each = weight_steps(vectors, dtype)
    cells = range(rows * vectors)
    # One by one: loaded as a group they would have to stay in a row.
    starts = [
        code.load_at("%bias", cell * lanes) if biased else "zeroinitializer" for cell in cells
    ]
    before, code.lines = code.lines, []

    x, wt, sums = "%x.now", "%wt.now", [f"%sum{cell}" for cell in cells]
    for first in range(0, unrolled, each):
        if first:
            (x, wt), sums = code.step((x, wt), sums)
        if first % lanes == 0:
            pixels, x = code.load(x, rows)
        loaded, wt = code.load(wt, each * vectors)
        for k in range(each):
            for row in range(rows):
                factor = code.lane(pixels[row], first % lanes + k)
                for vector in range(vectors):
                    cell = row * vectors + vector
                    row_of_wt = loaded[k * vectors + vector]
                    sums[cell] = code.multiply_add(factor, row_of_wt, sums[cell])
    loop, code.lines = code.lines, []

    for cell in cells:
        code.store(sums[cell], code.behind("%sums", cell * lanes))
    phis = [("i32", "%turn", "%turns", "%left"), ("ptr", "%x.now", "%x", x)]
    phis += [("ptr", "%wt.now", "%wt", wt)]
    phis += [(code.vector, f"%sum{cell}", starts[cell], sums[cell]) for cell in cells]
    code.loop(phis, before=before, turn=loop, after=code.lines)
    bias = ("ptr %bias",) if biased else ()
    return code.function(("ptr %sums", "ptr %x", "ptr %wt", *bias, "i32 %turns"))
