"""Bytes of an image to what a network takes: a step of the graph, no layer of its own.

Maths   y = x / 127.5 - 1, in float32, then rounded to the network's dtype: to the last bit what a
        caller would compute who sends numbers instead of bytes.
Shapes  x and y the same, any.
Tiling  the values are one line: vectors of it on a CPU, a value a thread on a GPU.
Source  own.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.te.tile import module
from targets.target import Target

GPU_THREADS = 256  # a block


def lower(shape: Sequence[int], dtype: str, target: Target) -> IRModule:
    """The function main(x, y), x of uint8 and y of `dtype`."""
    x = te.placeholder(tuple(shape), "uint8", "x")

    def value(*index: tirx.PrimExpr) -> tirx.PrimExpr:
        number = x[index].astype("float32") / tirx.const(127.5, "float32")
        return (number - tirx.const(1, "float32")).astype(dtype)

    schedule = Schedule(module(x, te.compute(tuple(shape), value, name="y")))
    line = schedule.fuse(*schedule.get_loops(schedule.get_sblock("y")))
    if target.kind == "cuda":
        block, thread = schedule.split(line, [None, GPU_THREADS])
        schedule.bind(block, "blockIdx.x")
        schedule.bind(thread, "threadIdx.x")
        return schedule.mod
    vectors, lane = schedule.split(line, [None, target.cpu.lanes("float32")])
    schedule.parallel(vectors)
    schedule.vectorize(lane)
    return schedule.mod
