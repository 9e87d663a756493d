"""What the tensor-expression kernels share: sizes of tiles, and the last step of every formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels import CPUS
from kernels.reference import Array
from kernels.workload import Conv, Depthwise, Workload
from targets.target import Target

STACK_BYTES = 1024  # TVM's kMaxStackAlloca
LINE_BYTES = 64  # of a cache


def on_cpu(workload: Workload, target: Target) -> bool:
    """Whether `target` is a CPU that computes in the workload's dtype."""
    return target.kind in CPUS and target.cpu.computes(workload.dtype)


def lanes(target: Target, dtype: str, channels: int) -> int:
    """Elements a vector: the machine's, or fewer where there are not so many channels."""
    width = target.cpu.lanes(dtype)
    while width // 2 >= channels:
        width //= 2
    return width


def divisors(size: int) -> tuple[int, ...]:
    """All divisors of `size`, ascending."""
    return tuple(part for part in range(1, size + 1) if size % part == 0)


def spread(choices: Sequence[int], most: int) -> tuple[int, ...]:
    """At most so many of `choices`, from the first to the last."""
    if len(choices) <= most:
        return tuple(choices)
    return tuple(choices[step * (len(choices) - 1) // (most - 1)] for step in range(most))


def activate(value: Any, activation: str) -> Any:
    """`value` after the activation, as a TE expression."""
    if activation == "none":
        return value
    positive = te.max(value, 0)
    return positive if activation == "relu" else te.min(positive, 6)


def window_span(workload: Conv | Depthwise, outputs: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels of the input under so many rows and columns of outputs."""
    height, width = ((count - 1) * workload.stride + workload.K for count in outputs)
    return height, width


def bordered(x: Any, workload: Conv | Depthwise, outputs: tuple[int, int], channels: int) -> Any:
    """The stage `staged`: the image (N*Hi*Wi,C) with zeros around it, (N,H,W,channels).

    It reaches as far as `outputs` rows and columns of outputs see, full tiles counted.
    """
    Hi, Wi, (top, _, left, _) = workload.Hi, workload.Wi, workload.pad
    height, width = window_span(workload, outputs)
    C = workload.x_shape[-1]

    def pixel(n: Any, h: Any, w: Any, c: Any) -> Any:
        inside = [h >= top, h < Hi + top, w >= left, w < Wi + left]
        within = tirx.all(*inside, c < C) if channels > C else tirx.all(*inside)
        value = x[(n * Hi + h - top) * Wi + w - left, c]
        return tirx.if_then_else(within, value, tirx.const(0, workload.dtype))

    return te.compute((workload.N, height, width, channels), pixel, name="staged")


def unroll(schedule: Schedule, *loops: LoopRV) -> None:
    """Unroll each of `loops`."""
    for loop in loops:
        schedule.unroll(loop)


def keep_in_registers(schedule: Schedule, block: SBlockRV, size_bytes: int) -> None:
    """Let the compiler hold what `block` computes, so many bytes, in vector registers.

    It does so for what lies on the stack, where TVM puts small `global` buffers and no `local` one,
    and, within a loop, for a buffer that nothing else can point to, as a `local` one is.
    """
    if size_bytes >= STACK_BYTES:
        schedule.set_scope(block, 0, "local")


def vectorize_last(schedule: Schedule, block: SBlockRV, width: int, unrolled: int) -> None:
    """Run the last loop of `block` in vectors of `width`; unroll so many loops outside a vector."""
    if width == 1:  # one channel: the block may have no loop of its own
        return
    *outer, last = schedule.get_loops(block)
    vector, lane = schedule.split(last, [None, width])
    schedule.vectorize(lane)
    unroll(schedule, *[*outer, vector][-unrolled:])


def pad_last(array: Array, block: int) -> Array:
    """`array` with zeros behind its last axis, up to a multiple of `block`."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % block)])


def module(*arguments: Any) -> IRModule:
    """An unscheduled module whose function `main` takes `arguments`, the output last."""
    return IRModule({"main": te.create_prim_func(arguments)})
