"""The machine's own multiply-add peak: what every kernel's speed is compared with.

Maths   CHAINS independent chains of acc = acc / 2 + v in registers, as many as hide the latency of
        a fused multiply-add; nothing is loaded in the loop.
Source  own.
"""

from __future__ import annotations

import numpy as np
from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.te.tile import module, unroll, vectorize_last
from targets.target import Target

CHAINS = 12
STEPS = 1 << 20


def lower(target: Target, dtype: str, threads: int) -> IRModule:
    """The function main(v, y), both like `argument`: STEPS steps in every thread."""
    width = target.cpu.lanes(dtype)
    shape = (threads, CHAINS, width)
    v = te.placeholder(shape, dtype, "v")
    step = te.reduce_axis((0, STEPS), "step")
    chain = te.comm_reducer(
        lambda acc, value: acc * tirx.const(0.5, dtype) + value,
        lambda dtype: tirx.const(0, dtype),
        name="chain",
    )
    acc = te.compute(shape, lambda t, c, i: chain(v[t, c, i], step), name="acc")
    y = te.compute(shape, lambda t, c, i: acc[t, c, i] * tirx.const(1, dtype), name="y")

    schedule = Schedule(module(v, y))
    block = schedule.get_sblock("acc")
    t, c, i, loop = schedule.get_loops(block)
    schedule.reorder(t, loop, c, i)
    schedule.reverse_compute_at(schedule.get_sblock("y"), t)
    schedule.set_scope(block, 0, "local")
    schedule.parallel(t)
    schedule.vectorize(i)
    schedule.unroll(c)
    init = schedule.decompose_reduction(block, loop)
    unroll(schedule, schedule.get_loops(init)[-2])
    vectorize_last(schedule, schedule.get_sblock("y"), width, unrolled=2)
    return schedule.mod


def argument(target: Target, dtype: str, threads: int) -> Array:
    """v (threads, CHAINS, lanes)."""
    return np.ones((threads, CHAINS, target.cpu.lanes(dtype)), dtype)


def flops(target: Target, dtype: str, threads: int) -> int:
    """Operations of one call."""
    return 2 * STEPS * threads * CHAINS * target.cpu.lanes(dtype)
