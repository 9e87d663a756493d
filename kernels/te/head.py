"""Global average pooling and the dense layer behind it, CPU.

Maths   y[n,co] = act(bias[co] + sum_ci (sum_p x[n*H*W+p,ci]) * wt[ci,co] / (H*W))
Shapes  x (N*H*W,Ci)  wt (Co/BLOCK_CO,Ci,BLOCK_CO), divided by H*W when packed
        bias (Co/BLOCK_CO,BLOCK_CO)  y (N,Co)
Types   float32; float16 with sums in float32 where the core has it.
Tiling  First every task pools BLOCK_CI channels; then every task makes BLOCK_CO outputs of BLOCK_N
        images, summed in registers. A weight is used BLOCK_N times, so at batch 1 the speed is that
        of the memory the weights come from.
Limits  none on sizes.
Source  own.
"""

from __future__ import annotations

import numpy as np
from tvm import te
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
)
from kernels.workload import Head, Workload
from targets.target import Target

SUMS = "float32"


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Head) and on_cpu(workload, target)


def space(workload: Head, target: Target) -> Space:
    """How many channels a task pools, and register tiles of the dense layer."""
    width = lanes(target, SUMS, workload.Co)
    accumulators = target.cpu.vector_registers - 4
    pooled = lanes(target, SUMS, workload.Ci)
    chunks = tuple(
        pooled * count for count in (1, 2, 4, 8, 16) if workload.Ci % (pooled * count) == 0
    ) or (workload.Ci,)
    images = tuple(count for count in divisors(workload.N) if count <= 8)
    vectors = [c for c in (1, 2, 3, 4, 6, 8, 9, 12, 16) if c <= blocks(workload.Co, width)]
    columns = tuple(width * count for count in vectors)
    unrolls = tuple(count for count in (1, 2, 4) if workload.Ci % count == 0)
    return Space(
        knobs=(
            Knob("BLOCK_CI", chunks, chunks[-1]),
            Knob("BLOCK_N", images, images[-1]),
            Knob("BLOCK_CO", columns, columns[len(columns) // 2]),
            Knob("UNROLL_CI", unrolls, unrolls[-1]),
        ),
        constraints=(
            Constraint(
                "sums fit registers",
                lambda c: int(c["BLOCK_N"]) * int(c["BLOCK_CO"]) // width <= accumulators,
            ),
        ),
    )


def lower(workload: Head, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    width = lanes(target, SUMS, workload.Co)
    schedule = Schedule(_formula(workload, config))
    schedule.fuse_reduction_epilogue("acc", "biased")
    pooled, acc, y = (schedule.get_sblock(name) for name in ("pooled", "acc", "y"))

    n, ci, p = schedule.get_loops(pooled)
    block, ci = schedule.split(ci, [None, int(config["BLOCK_CI"])])
    vector, lane = schedule.split(ci, [None, min(width, int(config["BLOCK_CI"]))])
    schedule.reorder(n, block, p, vector, lane)
    schedule.vectorize(lane)
    schedule.unroll(vector)
    schedule.parallel(schedule.fuse(n, block))
    init = schedule.decompose_reduction(pooled, p)
    unroll(schedule, schedule.get_loops(init)[-2])

    no, co, n, c, ci = schedule.get_loops(acc)
    ci, step = schedule.split(ci, [None, int(config["UNROLL_CI"])])
    vector, lane = schedule.split(c, [None, width])
    schedule.reorder(no, co, ci, step, n, vector, lane)
    schedule.reverse_compute_at(y, co)
    keep_in_registers(schedule, acc, 4 * int(config["BLOCK_N"]) * int(config["BLOCK_CO"]))
    schedule.parallel(schedule.fuse(no, co))
    schedule.vectorize(lane)
    unroll(schedule, step, n, vector)
    init = schedule.decompose_reduction(acc, ci)
    unroll(schedule, *schedule.get_loops(init)[-3:-1])
    # One image has no loop of its own around its vectors: the next one out is that over tasks.
    vectorize_last(schedule, y, width, unrolled=2 if int(config["BLOCK_N"]) > 1 else 1)
    return schedule.mod


def pack(workload: Head, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) -> (Co/BLOCK_CO,Ci,BLOCK_CO) divided by H*W, and bias; padded with zeros."""
    wt, bias = weights
    columns = int(config["BLOCK_CO"])
    mean = (wt.astype(np.float64) / (workload.H * workload.W)).astype(wt.dtype)
    packed = pad_last(mean, columns).reshape(workload.Ci, -1, columns).transpose(1, 0, 2)
    return np.ascontiguousarray(packed), pad_last(bias, columns).reshape(-1, columns)


def _formula(workload: Head, config: Config) -> IRModule:
    """The unscheduled function, the dense sum already written tile by tile."""
    N, Ci, Co, dtype = workload.N, workload.Ci, workload.Co, workload.dtype
    pixels = workload.H * workload.W
    BN, BC = int(config["BLOCK_N"]), int(config["BLOCK_CO"])
    TN, TC = N // BN, blocks(Co, BC)
    x = te.placeholder((N * pixels, Ci), dtype, "x")
    wt = te.placeholder((TC, Ci, BC), dtype, "wt")
    bias = te.placeholder((TC, BC), SUMS, "bias")
    p, ci = te.reduce_axis((0, pixels), "p"), te.reduce_axis((0, Ci), "ci")

    pooled = te.compute(
        (N, Ci), lambda n, c: te.sum(x[n * pixels + p, c].astype(SUMS), p), name="pooled"
    )
    shape = (TN, TC, BN, BC)
    acc = te.compute(
        shape,
        lambda no, co, n, c: te.sum(pooled[no * BN + n, ci] * wt[co, ci, c].astype(SUMS), ci),
        name="acc",
    )
    biased = te.compute(shape, lambda no, co, n, c: acc[no, co, n, c] + bias[co, c], name="biased")
    y = te.compute(
        (N, Co),
        lambda n, c: activate(biased[n // BN, c // BC, n % BN, c % BC], workload.activation).astype(
            dtype
        ),
        name="y",
    )
    return module(x, wt, bias, y)
