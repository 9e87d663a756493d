"""Pointwise convolution, NHWC, x86: the matrix product, with fewer multiply-adds than it has.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p a pixel of the batch
Shapes  x (P,Ci)  y (P,Co)  wt, bias as `kernels.te.avx.strassen` packs them
Types   float32.
Tiling  That of `kernels.te.avx.strassen`. A task has CHUNK rows of tiles, and one of PARTS of each
        of their parts of the output channels; it makes all sums that it needs.
Limits  Those of `kernels.te.avx.strassen`.
Source  that of `kernels.te.avx.strassen`.
"""

from __future__ import annotations

from functools import partial

from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Space
from kernels.te.avx import pointwise, strassen
from kernels.te.tasks import task_pixels
from kernels.workload import Pointwise, Workload
from targets.target import Target


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Pointwise)
        and pointwise.supports(workload, target)
        and bool(strassen.parts(workload, target, workload.pixels))
    )


def space(workload: Pointwise, target: Target) -> Space:
    """Tiles, and how many of them a task has."""
    parts = strassen.parts(workload, target, workload.pixels)
    return pointwise.in_tasks(workload, parts, *strassen.knobs(parts, target))


def lower(workload: Pointwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    codes: dict[str, str] = {}
    calls = partial(strassen.calls, workload, config, target, codes)
    shapes = strassen.shapes(workload, config)
    buffers = strassen.buffers(workload, config, task_pixels(workload, config))
    return pointwise.scheduled(workload, config, codes, calls, shapes, buffers=buffers)


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) and bias (Co,) as `kernels.te.avx.strassen` reads them."""
    return strassen.packed(workload, config, *weights)


def flops(workload: Pointwise) -> int:
    """Operations of the products."""
    return 2 * workload.macs - strassen.saved(workload)
