"""A copy from thread to thread: what shows what cores cost one another.

Maths   y[t] = x[(t + turn) mod threads] / 2 + 1, every thread t a part of its own. Copied to and
        fro, each reads what it wrote itself with turn 0, and what another one wrote with turn 1.
Source  own.
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.te.tile import module
from targets.target import Target

DTYPE = "float32"


def lower(target: Target, threads: int, vectors: int, turn: int) -> IRModule:
    """The function main(x, y), both of `shape`."""
    x = te.placeholder(shape(target, threads, vectors), DTYPE, "x")
    half, one = tirx.const(0.5, DTYPE), tirx.const(1, DTYPE)
    y = te.compute(
        shape(target, threads, vectors),
        lambda t, v, i: x[tirx.floormod(t + turn, threads), v, i] * half + one,
        name="y",
    )
    schedule = Schedule(module(x, y))
    thread, _, lane = schedule.get_loops("y")
    schedule.parallel(thread)
    schedule.vectorize(lane)
    return schedule.mod


def shape(target: Target, threads: int, vectors: int) -> tuple[int, int, int]:
    """(threads, vectors, lanes)."""
    return threads, vectors, target.cpu.lanes(DTYPE)
