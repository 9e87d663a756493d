"""The machine's own memory rate: what a kernel that waits for its data is compared with.

Maths   CHAINS sums over an array that no cache holds, added up in registers.
Source  own.
"""

from __future__ import annotations

import numpy as np
from tvm import te
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.te.tile import module, vectorize_last
from targets.caches import last_level
from targets.target import Target

CHAINS = 8
TIMES = 3  # what the threads' last-level caches hold together
LEAST_BYTES = 64 << 20


def lower(target: Target, threads: int) -> IRModule:
    """The function main(x, y) of arrays like `arguments`."""
    steps, width = _steps(target, threads), target.cpu.lanes("float32")
    x = te.placeholder((threads, steps, CHAINS, width), "float32", "x")
    step = te.reduce_axis((0, steps), "step")
    y = te.compute(
        (threads, CHAINS, width), lambda t, c, i: te.sum(x[t, step, c, i], step), name="acc"
    )
    schedule = Schedule(module(x, y))
    block = schedule.get_sblock("acc")
    t, c, i, loop = schedule.get_loops(block)
    schedule.reorder(t, loop, c, i)
    y_block = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(y_block, t)
    schedule.parallel(t)
    schedule.vectorize(i)
    schedule.unroll(c)
    schedule.decompose_reduction(block, loop)
    vectorize_last(schedule, y_block, width, unrolled=2)
    return schedule.mod


def arguments(target: Target, threads: int) -> tuple[Array, Array]:
    """x (threads, steps, CHAINS, lanes), all that a call reads, and y (threads, CHAINS, lanes)."""
    width = target.cpu.lanes("float32")
    x = np.ones((threads, _steps(target, threads), CHAINS, width), np.float32)
    return x, np.zeros((threads, CHAINS, width), np.float32)


def read_bytes(threads: int) -> int:
    """About as many as all threads read in a call, more than their caches hold."""
    size_bytes, caches = last_level()
    return max(LEAST_BYTES, TIMES * size_bytes * min(threads, caches))


def _steps(target: Target, threads: int) -> int:
    return read_bytes(threads) // (4 * threads * CHAINS * target.cpu.lanes("float32"))
