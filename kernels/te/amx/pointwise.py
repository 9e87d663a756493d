"""Pointwise convolution, NHWC, x86 with AMX: the matrix product of pixels and channels.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p a pixel of the batch
Shapes  x (P,Ci)  y (P,Co)  wt, bias as `kernels.te.amx.product` packs them
Types   float32.
Tiling  That of `kernels.te.amx.product`. A task has CHUNK rows of its tiles, and one of PARTS of the
        output channels.
Limits  Those of `kernels.te.amx.product`.
Source  own; for the product that of `kernels.te.amx.product`.
"""

from __future__ import annotations

from functools import partial

from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Space
from kernels.te.amx import product
from kernels.te.avx import pointwise
from kernels.te.tasks import task_pixels
from kernels.workload import Pointwise, Workload
from targets.target import Target


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Pointwise) and product.supports(workload, target)


def space(workload: Pointwise, target: Target) -> Space:
    """Tiles, and how many of them a task has."""
    return pointwise.in_tasks(workload, {0: workload}, *product.knobs(workload))


def lower(workload: Pointwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    codes: dict[str, str] = {}
    calls = partial(product.calls, workload, config, target, codes)
    pixels = min(task_pixels(workload, config), workload.pixels)
    shapes = product.shapes(workload, config)
    buffers = product.buffers(workload, config, pixels)
    return pointwise.scheduled(workload, config, codes, calls, shapes, buffers=buffers)


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) and bias (Co,) as `kernels.te.amx.product` reads them."""
    return product.packed(workload, config, *weights)


def flops(workload: Pointwise) -> int:
    """Operations of the vector units in the time that the products take."""
    return product.operations(workload)
