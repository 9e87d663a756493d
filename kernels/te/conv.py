"""Convolution over few input channels, the network's stem, NHWC, CPU.

Maths   y[n,ho,wo,co] = act(bias[co] + sum_{kh,kw,ci} x[n, ho*stride+kh-top, wo*stride+kw-left, ci]
                                                      * wt[kh,kw,ci,co])
        x outside the image reads as 0.
Shapes  x (N*Hi,Wi*Ci)  wt (K,K,Ci,Co)  bias (Co,)  y (N,Ho,Wo,Co)
Types   float32; float16 where the core computes in it.
Tiling  A task computes BLOCK_HO rows of one image, after copying the input rows that it needs, with
        their border of zeros, to a buffer that stays in L1. BLOCK_WO outputs x BLOCK_CO channels at
        a time are summed in registers, all taps unrolled: a tap is one broadcast a pixel and one
        row of weights.
Limits  at most 64 taps (K*K*Ci), because they are unrolled.
Source  own.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te.tile import (
    activate,
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
from kernels.workload import ITEM_BYTES, Conv, Workload
from targets.target import Target

MOST_TAPS = 64


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Conv) and workload.terms <= MOST_TAPS and on_cpu(workload, target)


def space(workload: Conv, target: Target) -> Space:
    """Register tiles that use the registers well, and rows that fit half of L1."""
    width = lanes(target, workload.dtype, workload.Co)
    accumulators, l1 = target.cpu.vector_registers - 4, target.cpu.l1_bytes
    item = ITEM_BYTES[workload.dtype]
    rows = tuple(rows for rows in divisors(workload.Ho) if rows <= 16)
    columns = tuple(sorted({min(columns, workload.Wo) for columns in (4, 6, 7, 8, 12, 14, 16, 28)}))
    vectors = [count for count in (1, 2, 4) if count <= blocks(workload.Co, width)]

    def sums(config: Config) -> int:
        return int(config["BLOCK_WO"]) * int(config["BLOCK_CO"]) // width

    def rows_fit(config: Config) -> bool:
        height, across = window_span(workload, (int(config["BLOCK_HO"]), workload.Wo))
        return config["BLOCK_HO"] == 1 or item * height * across * workload.Ci <= l1 // 2

    return Space(
        knobs=(
            Knob("BLOCK_HO", rows, 1),
            Knob("BLOCK_WO", columns, columns[len(columns) // 2]),
            Knob("BLOCK_CO", tuple(width * count for count in vectors), width * vectors[-1]),
        ),
        constraints=(
            Constraint("sums fit registers", lambda c: sums(c) <= accumulators),
            Constraint("rows fit L1", rows_fit),
        ),
    )


def lower(workload: Conv, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    width = lanes(target, workload.dtype, workload.Co)
    schedule = Schedule(_formula(workload, config))
    schedule.fuse_reduction_epilogue("acc", "biased")
    staged, acc, y = (schedule.get_sblock(name) for name in ("staged", "acc", "y"))

    n, h, wo, co, w, c, kh, kw, ci = schedule.get_loops(acc)
    ho, h = schedule.split(h, [None, int(config["BLOCK_HO"])])
    vector, lane = schedule.split(c, [None, width])
    schedule.reorder(n, ho, h, wo, co, kh, kw, ci, w, vector, lane)
    task = schedule.fuse(n, ho)
    schedule.reverse_compute_at(y, co)
    schedule.compute_at(staged, task)
    held = ITEM_BYTES[workload.dtype] * int(config["BLOCK_WO"]) * int(config["BLOCK_CO"])
    keep_in_registers(schedule, acc, held)
    schedule.parallel(task)
    schedule.vectorize(lane)
    unroll(schedule, kh, kw, ci, w, vector)
    vectorize_last(schedule, y, width, unrolled=2)
    *_, j = schedule.get_loops(staged)
    vector, lane = schedule.split(j, [None, width])
    schedule.annotate(vector, "pragma_loop_partition_hint", 1)
    schedule.vectorize(lane)
    return schedule.mod


def pack(workload: Conv, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (K,K,Ci,Co) and bias (Co,), output channels padded with zeros to whole blocks."""
    wt, bias = weights
    columns = int(config["BLOCK_CO"])
    return pad_last(wt, columns), pad_last(bias, columns).astype(workload.dtype)


def _formula(workload: Conv, config: Config) -> IRModule:
    """The unscheduled function, its sum already written tile by tile."""
    N, Co, Ci, K, stride = workload.N, workload.Co, workload.Ci, workload.K, workload.stride
    Hi, Wi, Ho, Wo, dtype = workload.Hi, workload.Wi, workload.Ho, workload.Wo, workload.dtype
    top, _, left, _ = workload.pad
    BW, BC = int(config["BLOCK_WO"]), int(config["BLOCK_CO"])
    TW, TC = blocks(Wo, BW), blocks(Co, BC)
    x = te.placeholder((N * Hi, Wi * Ci), dtype, "x")
    wt = te.placeholder((K, K, Ci, TC * BC), dtype, "wt")
    bias = te.placeholder((TC * BC,), dtype, "bias")
    kh, kw, ci = (
        te.reduce_axis((0, size), name) for size, name in ((K, "kh"), (K, "kw"), (Ci, "ci"))
    )

    def pixel(n: Any, h: Any, j: Any) -> Any:
        inside = [h >= top, h < Hi + top, j >= left * Ci, j < (Wi + left) * Ci]
        value = x[n * Hi + h - top, j - left * Ci]
        return tirx.if_then_else(tirx.likely(tirx.all(*inside)), value, tirx.const(0, dtype))

    height, across = window_span(workload, (Ho, TW * BW))
    staged = te.compute((N, height, across * Ci), pixel, name="staged")
    shape = (N, Ho, TW, TC, BW, BC)
    acc = te.compute(
        shape,
        lambda n, h, wo, co, w, c: te.sum(
            staged[n, h * stride + kh, ((wo * BW + w) * stride + kw) * Ci + ci]
            * wt[kh, kw, ci, co * BC + c],
            [kh, kw, ci],
        ),
        name="acc",
    )
    biased = te.compute(
        shape,
        lambda n, h, wo, co, w, c: acc[n, h, wo, co, w, c] + bias[co * BC + c],
        name="biased",
    )
    y = te.compute(
        workload.y_shape,
        lambda n, h, w, c: activate(
            biased[n, h, w // BW, c // BC, w % BW, c % BC], workload.activation
        ),
        name="y",
    )
    return module(x, wt, bias, y)
