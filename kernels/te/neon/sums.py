"""A register tile's sums as TensorIR knows them, and a loop of LLVM's code in their place."""

from __future__ import annotations

from textwrap import indent

from tvm.s_tir import Schedule, TensorIntrin
from tvm.s_tir.schedule import LoopRV
from tvm.script import from_source

from kernels.te.llvm.code import NEON
from kernels.te.neon.loop import tile

FUNCTION = """
@T.prim_func(s_tir=True)
def function({handles}):
{matches}
    with T.sblock("root"):
        T.reads({reads})
        T.writes({written})
{body}
"""
LOOPS = """
for i, j, k in T.grid({channels}, {rows}, {columns}):
    with T.sblock("sum"):
        vj, vk, vi = T.axis.remap("SSR", [j, k, i])
        T.reads({sum}, {elements})
        T.writes({sum})
        with T.init():
            {sum} = {start}
        {sum} = {sum} + x[vi // {lanes}, vj, vi % {lanes}] * wt[vi, vk]
"""


def replace(
    schedule: Schedule,
    loop: LoopRV,
    around: LoopRV,
    *,
    rows: int,
    columns: int,
    channels: int,
    unrolled: int,
    dtype: str,
    biased: bool,
) -> None:
    """Put a loop of machine code, `unrolled` channels a turn, in the place of `loop`.

    loop    over `channels`; in it one over `rows` and one over `columns` of the sums
    around  a loop around it, where its code comes into the module
    biased  whether the sums start from such a tile, or from zero
    """
    lanes = NEON.lanes(dtype)
    name, code = tile(rows, columns // lanes, unrolled, dtype, biased=biased)
    shapes = {
        "bias": (rows, columns),
        "x": (channels // lanes, rows, lanes),
        "wt": (channels, columns),
        # Of several parts of a sum it is one, counted last.
        "sums": (rows, columns) if biased else (rows, columns, 1),
    }
    start = f"T.{dtype}(0)"
    elements = f"x[vi // {lanes}, vj, vi % {lanes}], wt[vi, vk]"
    if biased:
        start, elements = "bias[vj, vk]", f"bias[vj, vk], {elements}"
    else:
        del shapes["bias"]
    *read, written = shapes
    given = ['sums.access_ptr("w")', 'x.access_ptr("r")', 'wt.access_ptr("r")']
    given += ['bias.access_ptr("r")'] if biased else []

    def function(body: str) -> str:
        matches = [
            f'{buffer} = T.match_buffer({buffer}_, {shape}, "{dtype}", offset_factor=1, align=4)'
            for buffer, shape in shapes.items()
        ]
        regions = {
            buffer: f"{buffer}[{', '.join(f'0:{size}' for size in shape)}]"
            for buffer, shape in shapes.items()
        }
        return FUNCTION.format(
            handles=", ".join(f"{buffer}_: T.handle" for buffer in shapes),
            matches=indent("\n".join(matches), " " * 4),
            reads=", ".join(regions[buffer] for buffer in read),
            written=regions[written],
            body=indent(body.strip(), " " * 8),
        )

    loops = LOOPS.format(
        rows=rows,
        columns=columns,
        channels=channels,
        lanes=lanes,
        sum="sums[vj, vk]" if biased else "sums[vj, vk, 0]",
        start=start,
        elements=elements,
    )
    call = (
        f'T.evaluate(T.call_extern("int32", "{name}", {", ".join(given)}, {channels // unrolled}))'
    )
    intrinsic = f"septune.{name}.{channels}"
    pair = (from_source(function(text)) for text in (loops, call))
    TensorIntrin.register(intrinsic, *pair, override=True)
    schedule.tensorize(loop, intrinsic)
    schedule.annotate(around, "pragma_import_llvm", code)
