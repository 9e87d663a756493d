"""Pointwise convolution, NHWC, x86 with AMX: the matrix product of pixels and channels.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p a pixel of the batch
Shapes  x (P,Ci)  y (P,Co)  wt, bias as `kernels.te.amx.product` packs them
Types   float32.
Tiling  That of `kernels.te.amx.product`. A task has CHUNK rows of its tiles, whose pixels it first
        lays out in pieces, and one of PARTS of the output channels.
Limits  Those of `kernels.te.amx.product`.
Source  own.
"""

from __future__ import annotations

from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Space
from kernels.te.amx import pieces, product
from kernels.te.avx import pointwise
from kernels.te.avx.product import Task
from kernels.te.llvm.code import Code, isa_of, moved
from kernels.te.tasks import task_pixels
from kernels.workload import Pointwise, Workload
from targets.target import Target

BUFFER = 's = T.sblock_alloc_buffer(({count}, {size}), "{dtype}")\n'
LAY_OUT = """
for p in range({count}):
    T.evaluate(
        T.call_extern("int32", "{name}", s.access_ptr("w", offset=p * {size}), {x})
    )
"""


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Pointwise) and product.supports(workload, target)


def space(workload: Pointwise, target: Target) -> Space:
    """Tiles, and how many of them a task has."""
    return pointwise.in_tasks(workload, {0: workload}, *product.knobs(workload))


def lower(workload: Pointwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    codes: dict[str, str] = {}
    s = pieces.pixels(workload.Ci, isa_of(target).lanes(workload.dtype))

    def calls(task: Task) -> str:
        x = f's.access_ptr("r", offset=({{pixel}}) * {s.pixel})'
        multiplied = product.calls(workload, config, target, codes, task._replace(x=x))
        return _lay_out(workload, target, codes, task) + multiplied

    most = min(task_pixels(workload, config), workload.pixels)
    buffer = BUFFER.format(count=most + s.spare, size=s.pixel, dtype=workload.dtype)
    shapes = product.shapes(workload, config)
    return pointwise.scheduled(workload, config, codes, calls, shapes, buffers=buffer)


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) and bias (Co,) as `kernels.te.amx.product` reads them."""
    return product.packed(workload, config, *weights)


def flops(workload: Pointwise) -> int:
    """Operations of the vector units in the time that the products take."""
    return product.operations(workload)


def _lay_out(workload: Pointwise, target: Target, codes: dict[str, str], task: Task) -> str:
    """Statements that lay out a task's pixels."""
    code = Code(isa_of(target), workload.dtype)
    size, x = pieces.pixels(workload.Ci, code.lanes).pixel, task.x.format(pixel="p")
    name, codes[name] = _pixel_laid_out(code, workload.Ci)
    return LAY_OUT.lstrip().format(count=task.pixels, name=name, size=size, x=x)


def _pixel_laid_out(code: Code, channels: int) -> tuple[str, str]:
    """Name and code of `int (s, x)`, which lays out a pixel, a line of each piece a turn."""
    for first in range(0, pieces.DEEP, 2 * code.lanes):
        pair = [code.load_at("%x.now", first + lane) for lane in (0, code.lanes)]
        pieces.store(code, pair, code.behind("%s.now", first // 2))
    steps = {"%s": pieces.PIECES * pieces.LINE, "%x": pieces.DEEP}
    phis = [("i32", "%turn", str(channels // pieces.DEEP), "%left"), *moved(code, steps)]
    code.loop(phis, before=[], turn=code.lines, after=[])
    return code.function(("ptr %s", "ptr %x"))
