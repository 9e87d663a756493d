"""Global average pooling and the dense layer behind it, CUDA.

Maths   y[n,co] = act(bias[co] + sum_ci (sum_p x[n*H*W+p,ci]) * wt[ci,co] / (H*W))
Shapes  x (N*H*W,Ci)  wt (Ci,Co) and bias (Co,), padded with zeros to whole blocks  y (N,Co)
Types   storage float32 or float16, bias and sums float32.
Tiling  A block makes BLOCK_CO outputs of one image. Its threads pool all channels to shared memory,
        VECTOR of them at a time; every block does so anew, from the second-level cache. Then
        SPLIT_CI groups of threads each sum their part of the terms of all outputs, VECTOR outputs
        a thread, and the sums of the groups are added up.
Limits  none on sizes.
Source  own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te.cuda.tile import (
    LANES,
    SHARED,
    finished,
    in_registers,
    multiplied,
    on_gpu,
    share,
    unroll_below,
    vectorize,
    vectors,
)
from kernels.te.tile import divisors, module, pad_last
from kernels.workload import Head, Workload
from targets.target import Target

UNROLL_CI = 4
MOST_UNROLLED = 64
THREADS = 256  # by default at most


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Head) and on_gpu(workload, target)


def space(workload: Head, target: Target) -> Space:
    """From a block for a few outputs to one for many, of several images."""
    gpu = target.gpu
    images = tuple(count for count in divisors(workload.N) if count <= 8)
    columns = tuple(c for c in (8, 16, 32, 64, 128, 256) if c < 2 * max(workload.Co, 8))
    # About a block for each two multiprocessors, or several.
    busy = [c for c in columns if workload.N * blocks(workload.Co, c) >= gpu.sms // 3]
    column = max(busy, default=columns[0])
    widest, splits = max(vectors(workload.dtype)), (4, 8, 16, 32, 64)
    split = max(splits[0], min(32, 4 * THREADS // column))

    def threads(config: Config) -> int:
        return int(config["SPLIT_CI"]) * int(config["BLOCK_CO"]) // int(config["VECTOR"])

    def shared_bytes(config: Config) -> int:
        sums = int(config["SPLIT_CI"]) * int(config["BLOCK_CO"])
        return 4 * int(config["BLOCK_N"]) * (_depth(workload, config) + sums)

    return Space(
        knobs=(
            Knob("BLOCK_N", images, 1),
            Knob("BLOCK_CO", columns, column),
            Knob("SPLIT_CI", splits, split),
            Knob("VECTOR", tuple(sorted({2, 4, widest})), 4),
        ),
        constraints=(
            Constraint("whole warps", lambda c: threads(c) % LANES == 0),
            Constraint("threads fit a block", lambda c: 64 <= threads(c) <= gpu.threads_per_block),
            Constraint("sums fit registers", lambda c: int(c["BLOCK_N"]) * int(c["VECTOR"]) <= 32),
            Constraint(
                "channels and sums fit shared memory",
                lambda c: shared_bytes(c) <= gpu.shared_per_block_bytes,
            ),
        ),
    )


def lower(workload: Head, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    width, columns = int(config["VECTOR"]), int(config["BLOCK_CO"])
    threads = (int(config["SPLIT_CI"]), columns // width)
    schedule = Schedule(_formula(workload, config))
    stages = ("pixel", "pooled", "mean", "part", "parts", "total", "y")
    pixel, pooled, mean, part, parts, total, y = map(schedule.get_sblock, stages)
    in_registers(schedule, pixel, pooled, part, total)
    for block in (mean, parts):
        schedule.set_scope(block, 0, SHARED)
    wt = schedule.cache_read(part, 1, "local")

    n, split, c, k = schedule.get_loops(part)
    no, n = schedule.split(n, [None, int(config["BLOCK_N"])])
    co, cx, c = schedule.split(c, [None, columns // width, width])
    k, step = schedule.split(k, [None, UNROLL_CI])
    schedule.reorder(no, co, split, cx, k, step, n, c)
    block = schedule.fuse(no, co)
    for loop, axis in ((block, "blockIdx.x"), (split, "threadIdx.y"), (cx, "threadIdx.x")):
        schedule.bind(loop, axis)
    for consumer, loop in ((parts, cx), (total, block), (y, block)):
        schedule.reverse_compute_at(consumer, loop)
    schedule.compute_at(wt, step)
    schedule.compute_at(mean, block)
    vectorize(schedule, wt, width)
    vectorize(schedule, parts, min(width, 4))
    share(schedule, y, block, threads, 1, (total,))
    most = vectors(workload.dtype, workload.Ci)[-1]
    most = share(schedule, mean, block, threads, most, (pooled,))
    p = schedule.get_loops(pooled)[-1]
    *_, c = schedule.get_loops(pooled)[:-1]
    schedule.reorder(p, c)
    schedule.compute_at(pixel, p)
    vectorize(schedule, pixel, most)
    s = schedule.get_loops(total)[-1]
    for reduction, loop in ((pooled, p), (part, k), (total, s)):
        schedule.decompose_reduction(reduction, loop)
    rolled = (k,) if workload.H * workload.W <= MOST_UNROLLED else (k, p)
    unroll_below(schedule, block, *rolled)
    return schedule.mod


def pack(workload: Head, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) and bias (Co,), padded with zeros to whole blocks."""
    wt, bias = weights
    columns = int(config["BLOCK_CO"])
    deep = np.pad(wt, ((0, _depth(workload, config) - workload.Ci), (0, 0)))
    return pad_last(deep, columns), pad_last(bias, columns)


def _depth(workload: Head, config: Config) -> int:
    """Input channels, counted in whole steps of all groups."""
    step = int(config["SPLIT_CI"]) * UNROLL_CI
    return blocks(workload.Ci, step) * step


def _formula(workload: Head, config: Config) -> IRModule:
    """The unscheduled function, the dense sum already split."""
    N, Ci, Co, dtype = workload.N, workload.Ci, workload.Co, workload.dtype
    P, S, K = workload.H * workload.W, int(config["SPLIT_CI"]), _depth(workload, config)
    columns = blocks(Co, int(config["BLOCK_CO"])) * int(config["BLOCK_CO"])
    x = te.placeholder((N * P, Ci), dtype, "x")
    wt = te.placeholder((K, columns), dtype, "wt")
    bias = te.placeholder((columns,), "float32", "bias")
    p, k, s = (
        te.reduce_axis((0, size), name) for size, name in ((P, "p"), (K // S, "k"), (S, "s"))
    )

    def inside(n: Any, q: Any, c: Any) -> Any:
        return tirx.if_then_else(c < Ci, x[n * P + q, c], tirx.const(0, dtype))

    pixel = te.compute((N, P, K), inside, name="pixel")
    pooled = te.compute(
        (N, K), lambda n, c: te.sum(pixel[n, p, c].astype("float32"), p), name="pooled"
    )
    mean = te.compute((N, K), lambda n, c: pooled[n, c] * tirx.const(1 / P, "float32"), name="mean")
    part = te.compute(
        (N, S, columns),
        lambda n, s, c: te.sum(multiplied(mean[n, k * S + s], wt[k * S + s, c]), k),
        name="part",
    )
    parts = te.compute((N, S, columns), lambda n, s, c: part[n, s, c], name="parts")
    total = te.compute((N, Co), lambda n, c: te.sum(parts[n, s, c], s), name="total")
    y = te.compute((N, Co), lambda n, c: finished(total[n, c], bias[c], workload), name="y")
    return module(x, wt, bias, y)
