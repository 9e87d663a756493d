"""Depthwise convolution, NHWC, CPU.

Maths   y[n,ho,wo,c] = act(bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                 * wt[kh,kw,c])
        x outside the image reads as 0.
Shapes  x (N*Hi*Wi,C)  wt (K,K,C)  bias (C,)  y (N,Ho,Wo,C)
Types   float32; float16 where the core computes in it.
Tiling  A task computes BLOCK_HO rows x BLOCK_C channels of one image, after copying the input rows
        that it needs, with their border of zeros, to a buffer that stays in L1 or L2: no inner loop
        asks whether a pixel lies inside the image. BLOCK_WO outputs x BLOCK_C channels at a time
        are summed in registers, all taps unrolled.
Limits  one filter a channel, no dilation.
Source  own.
"""

from __future__ import annotations

from tvm import te
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te.tile import (
    activate,
    bordered,
    divisors,
    keep_in_registers,
    lanes,
    module,
    on_cpu,
    pad_last,
    unroll,
    vectorize_last,
    window_span,
)
from kernels.workload import ITEM_BYTES, Depthwise, Workload
from targets.target import Target


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Depthwise) and on_cpu(workload, target)


def space(workload: Depthwise, target: Target) -> Space:
    """Tiles whose sums fit the registers, and whose input rows fit half of L2."""
    width = lanes(target, workload.dtype, workload.C)
    registers, l2 = target.cpu.vector_registers, target.cpu.l2_bytes
    rows = tuple(rows for rows in divisors(workload.Ho) if rows <= 28)
    columns = tuple(sorted({min(columns, workload.Wo) for columns in (1, 2, 4, 7, 8, 14)}))
    vectors = [count for count in (1, 2, 4) if count <= blocks(workload.C, width)]
    channels = tuple(width * count for count in vectors)

    def staged_bytes(config: Config) -> int:
        height, across = window_span(workload, (int(config["BLOCK_HO"]), workload.Wo))
        return ITEM_BYTES[workload.dtype] * height * across * int(config["BLOCK_C"])

    return Space(
        knobs=(
            Knob("BLOCK_HO", rows, max(row for row in rows if row <= 14)),
            Knob("BLOCK_WO", columns, min(7, workload.Wo)),
            Knob("BLOCK_C", channels, channels[0]),
        ),
        constraints=(
            Constraint(
                "sums fit registers",
                lambda c: int(c["BLOCK_WO"]) * int(c["BLOCK_C"]) // width <= registers - 4,
            ),
            Constraint("rows fit L2", lambda c: 2 * staged_bytes(c) <= l2),
        ),
    )


def lower(workload: Depthwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    width = lanes(target, workload.dtype, workload.C)
    schedule = Schedule(_formula(workload, config))
    schedule.fuse_reduction_epilogue("acc", "biased")
    staged, acc, y = (schedule.get_sblock(name) for name in ("staged", "acc", "y"))

    n, h, co, wo, w, c, kh, kw = schedule.get_loops(acc)
    ho, h = schedule.split(h, [None, int(config["BLOCK_HO"])])
    vector, lane = schedule.split(c, [None, width])
    schedule.reorder(n, ho, co, h, wo, kh, kw, w, vector, lane)
    task = schedule.fuse(n, ho, co)
    schedule.reverse_compute_at(y, wo)
    schedule.compute_at(staged, task)
    held = ITEM_BYTES[workload.dtype] * int(config["BLOCK_WO"]) * int(config["BLOCK_C"])
    keep_in_registers(schedule, acc, held)
    schedule.parallel(task)
    schedule.vectorize(lane)
    unroll(schedule, kh, kw, w, vector)
    vectorize_last(schedule, y, width, unrolled=2)
    for loop in schedule.get_loops(staged)[-3:-1]:
        schedule.annotate(loop, "pragma_loop_partition_hint", 1)
    vectorize_last(schedule, staged, width, unrolled=1)
    return schedule.mod


def pack(workload: Depthwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (K,K,C) and bias (C,), channels padded with zeros to whole blocks."""
    wt, bias = weights
    channels = int(config["BLOCK_C"])
    return pad_last(wt, channels), pad_last(bias, channels).astype(workload.dtype)


def _formula(workload: Depthwise, config: Config) -> IRModule:
    """The unscheduled function, its sum already written tile by tile."""
    N, C, K, stride, dtype = workload.N, workload.C, workload.K, workload.stride, workload.dtype
    Ho, Wo = workload.Ho, workload.Wo
    BW, BC = int(config["BLOCK_WO"]), int(config["BLOCK_C"])
    TW, TC = blocks(Wo, BW), blocks(C, BC)
    x = te.placeholder((N * workload.Hi * workload.Wi, C), dtype, "x")
    wt = te.placeholder((K, K, TC * BC), dtype, "wt")
    bias = te.placeholder((TC * BC,), dtype, "bias")
    kh, kw = te.reduce_axis((0, K), "kh"), te.reduce_axis((0, K), "kw")

    staged = bordered(x, workload, (Ho, TW * BW), TC * BC)
    shape = (N, Ho, TC, TW, BW, BC)
    acc = te.compute(
        shape,
        lambda n, h, co, wo, w, c: te.sum(
            staged[n, h * stride + kh, (wo * BW + w) * stride + kw, co * BC + c]
            * wt[kh, kw, co * BC + c],
            [kh, kw],
        ),
        name="acc",
    )
    biased = te.compute(
        shape,
        lambda n, h, co, wo, w, c: acc[n, h, co, wo, w, c] + bias[co * BC + c],
        name="biased",
    )
    y = te.compute(
        workload.y_shape,
        lambda n, h, w, c: activate(
            biased[n, h, c // BC, w // BW, w % BW, c % BC], workload.activation
        ),
        name="y",
    )
    return module(x, wt, bias, y)
