"""Depthwise convolution, NHWC, CUDA.

Maths   y[n,ho,wo,c] = act(bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                 * wt[kh,kw,c])
        x outside the image reads as 0.
Shapes  x (N*Hi*Wi,C)  wt (K,K,C)  bias (C,)  y (N,Ho,Wo,C)
Types   storage float32 or float16, bias and accumulation float32.
Tiling  A thread computes BLOCK_HO rows x BLOCK_WO columns of VECTOR channels: it loads the window
        under them once, a vector at a time, and keeps it, the filter and the sums in registers.
        Neighbouring threads have neighbouring channels, so that a warp reads whole lines; rows
        that two threads want come from the first-level cache the second time.
Limits  one filter a channel, no dilation.
Source  own.
"""

from __future__ import annotations

from tvm import te
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te.cuda.tile import (
    finished,
    in_registers,
    multiplied,
    on_gpu,
    threads,
    unroll_below,
    vectorize,
    vectors,
)
from kernels.te.tile import bordered, module, window_span
from kernels.workload import ITEM_BYTES, Depthwise, Workload
from targets.target import Target


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Depthwise) and on_gpu(workload, target)


def space(workload: Depthwise, target: Target) -> Space:
    """Tiles that leave room for several warps' registers."""
    widths = vectors(workload.dtype, workload.C)
    rows = tuple(rows for rows in (1, 2, 4) if rows <= workload.Ho)
    columns = tuple(columns for columns in (1, 2, 4) if columns <= workload.Wo)
    work = workload.N * workload.Ho * workload.Wo * workload.C // widths[-1]
    return Space(
        knobs=(
            Knob("BLOCK_HO", rows, 1),
            Knob("BLOCK_WO", columns, columns[-1] if work // columns[-1] > 32768 else 1),
            Knob("VECTOR", widths[-3:], widths[-1]),
            threads((64, 128, 256), work, target),
        ),
        constraints=(
            Constraint(
                "sums, window and filter fit registers", lambda c: _registers(workload, c) <= 160
            ),
        ),
    )


def lower(workload: Depthwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    width = int(config["VECTOR"])
    schedule = Schedule(_formula(workload, config))
    staged, acc, y = (schedule.get_sblock(name) for name in ("staged", "acc", "y"))
    in_registers(schedule, staged, acc)
    stored = schedule.cache_write(y, 0, "local")
    wt = schedule.cache_read(acc, 1, "local")

    n, ho, wo, co, h, w, c, kh, kw = schedule.get_loops(acc)
    schedule.reorder(kh, kw, h, w, c)
    for consumer in (y, stored):
        schedule.reverse_compute_at(consumer, co)
    bias = schedule.cache_read(y, 1, "local")
    for producer in (staged, wt, bias):
        schedule.compute_at(producer, co)
    block, thread = schedule.split(schedule.fuse(n, ho, wo, co), [None, int(config["THREADS"])])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    for copy in (staged, wt, stored):
        vectorize(schedule, copy, width)
    vectorize(schedule, bias, min(width, 4))
    schedule.decompose_reduction(acc, kh)
    unroll_below(schedule, thread)
    return schedule.mod


def pack(workload: Depthwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """As they are."""
    return weights


def _registers(workload: Depthwise, config: Config) -> int:
    """About how many a thread needs."""
    tile = (int(config["BLOCK_HO"]), int(config["BLOCK_WO"]))
    height, across = window_span(workload, tile)
    stored = height * across + workload.K**2
    item = ITEM_BYTES[workload.dtype]
    return int(config["VECTOR"]) * (tile[0] * tile[1] + stored * item // 4)


def _formula(workload: Depthwise, config: Config) -> IRModule:
    """The unscheduled function, its sum already written thread by thread."""
    N, C, K, stride, dtype = workload.N, workload.C, workload.K, workload.stride, workload.dtype
    BH, BW, V = (int(config[name]) for name in ("BLOCK_HO", "BLOCK_WO", "VECTOR"))
    TH, TW = blocks(workload.Ho, BH), blocks(workload.Wo, BW)
    x = te.placeholder((N * workload.Hi * workload.Wi, C), dtype, "x")
    wt = te.placeholder((K, K, C), dtype, "wt")
    bias = te.placeholder((C,), "float32", "bias")
    kh, kw = te.reduce_axis((0, K), "kh"), te.reduce_axis((0, K), "kw")

    staged = bordered(x, workload, (TH * BH, TW * BW), C)
    acc = te.compute(
        (N, TH, TW, C // V, BH, BW, V),
        lambda n, ho, wo, co, h, w, c: te.sum(
            multiplied(
                staged[n, (ho * BH + h) * stride + kh, (wo * BW + w) * stride + kw, co * V + c],
                wt[kh, kw, co * V + c],
            ),
            [kh, kw],
        ),
        name="acc",
    )
    y = te.compute(
        workload.y_shape,
        lambda n, h, w, c: finished(
            acc[n, h // BH, w // BW, c // V, h % BH, w % BW, c % V], bias[c], workload
        ),
        name="y",
    )
    return module(x, wt, bias, y)
