"""Depthwise and pointwise convolution in one kernel, NHWC, CUDA.

Maths   z[p,c] = act(bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                           * wt[kh,kw,c]), p counting the pixels (n,ho,wo)
        y[p,co] = act(bias'[co] + sum_c z[p,c] * wt'[c,co])
        x outside the image reads as 0.
Shapes  x (N*Hi*Wi,C)  wt (K,K,C)  bias (C,)  wt' (Co/BLOCK_CO,C,BLOCK_CO)  bias' (Co,), all
        padded with zeros to whole blocks  y (N*Ho*Wo,Co)
Types   storage float32 or float16, z too; biases and accumulation float32.
Tiling  The product is that of tensor_core.py in float16 and of cuda_core.py in float32; its left
        factor is z, of which each thread makes vectors of channels where the pointwise kernels copy
        them. A block makes the z that it needs, so that Co/BLOCK_CO blocks make the same.
Limits  none on sizes.
Source  own.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels.reference import Array
from kernels.space import Config, Constraint, Space, blocks
from kernels.te.cuda import cuda_core, product, tensor_core
from kernels.te.cuda.product import extents, factors, summed
from kernels.te.cuda.tile import (
    finished,
    in_registers,
    multiplied,
    on_gpu,
    share,
    vectorize,
    vectors,
)
from kernels.te.tile import module, pad_last
from kernels.workload import Separable, Workload
from targets.target import Target

MOST_MADE_AGAIN = 8


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Separable) and on_gpu(workload, target)


def space(workload: Separable, target: Target) -> Space:
    """Tiles that fit a block and do not make z too often."""
    engine = _engine(workload)
    return Space(
        knobs=engine.knobs(workload.pointwise, target),
        constraints=(
            *engine.constraints(target),
            Constraint(
                f"z is made {MOST_MADE_AGAIN} times at most",
                lambda c: blocks(workload.Co, int(c["BLOCK_CO"])) <= MOST_MADE_AGAIN,
            ),
        ),
    )


def lower(workload: Separable, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, wt', bias', y)."""
    schedule = Schedule(_formula(workload, config))
    pixel, between, made = map(schedule.get_sblock, ("pixel", "between", "made"))
    in_registers(schedule, pixel, between, made)

    def stage(left: SBlockRV, at: LoopRV, threads: tuple[int, int]) -> None:
        bias = schedule.cache_read(made, 1, "local")
        wt = schedule.cache_read(between, 1, "local")
        most = vectors(workload.dtype, workload.C)[-1]
        width = share(schedule, left, at, threads, most, (made, between, bias))
        *_, c, kh, kw = schedule.get_loops(between)
        schedule.reorder(kh, kw, c)
        for block in (pixel, wt):
            schedule.compute_at(block, kw)
            vectorize(schedule, block, width)
        vectorize(schedule, bias, min(width, 4))
        schedule.decompose_reduction(between, kh)

    _engine(workload).schedule_product(schedule, workload.pointwise, config, stage)
    return schedule.mod


def pack(workload: Separable, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """All four, padded with zeros to whole blocks; the pointwise filter in blocks of columns."""
    depth = int(config["BLOCK_CI"])
    ours = (pad_last(array, depth) for array in weights[:2])
    return *ours, *product.pack(workload.pointwise, config, weights[2:])


def _engine(workload: Separable) -> Any:
    """What schedules the product."""
    return tensor_core if workload.dtype == "float16" else cuda_core


def _formula(workload: Separable, config: Config) -> IRModule:
    """The unscheduled function."""
    Hi, Wi, Ho, Wo, C = workload.Hi, workload.Wi, workload.Ho, workload.Wo, workload.C
    K, stride, (top, _, left, _) = workload.K, workload.stride, workload.pad
    P = workload.N * Ho * Wo
    rows, depth, _ = extents(workload.pointwise, config)
    dtype = workload.dtype
    wt, bias = factors(workload.pointwise, config)
    x = te.placeholder((workload.N * Hi * Wi, C), dtype, "x")
    taps = te.placeholder((K, K, depth), dtype, "taps")
    first_bias = te.placeholder((depth,), "float32", "first_bias")
    kh, kw = te.reduce_axis((0, K), "kh"), te.reduce_axis((0, K), "kw")

    def under(p: Any, i: Any, j: Any, c: Any) -> Any:
        h, w = p // Wo % Ho * stride + i - top, p % Wo * stride + j - left
        inside = tirx.all(p < P, h >= 0, h < Hi, w >= 0, w < Wi, c < C)
        value = x[(p // (Ho * Wo) * Hi + h) * Wi + w, c]
        return tirx.if_then_else(inside, value, tirx.const(0, dtype))

    pixel = te.compute((rows, K, K, depth), under, name="pixel")
    between = te.compute(
        (rows, depth),
        lambda p, c: te.sum(multiplied(pixel[p, kh, kw, c], taps[kh, kw, c]), [kh, kw]),
        name="between",
    )
    made = te.compute(
        (rows, depth), lambda p, c: finished(between[p, c], first_bias[c], workload), name="made"
    )
    z = te.compute((rows, depth), lambda p, c: made[p, c], name="left")
    through = tensor_core.OUT if _engine(workload) is tensor_core else None
    y = summed(z, wt, bias, workload.pointwise, through)
    return module(x, taps, first_bias, wt, bias, y)
