"""What the CUDA kernels share: vectors, threads, and the last step of every formula.

Arithmetic is on single float32 values, which is what a GPU's lanes are; vectors are for moving
data, 16 bytes at a time, between global memory, shared memory and registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels.space import Knob
from kernels.te.tile import activate
from kernels.workload import ITEM_BYTES, Workload
from targets.target import Target

VECTOR_BYTES = 16
SHARED = "shared.dyn"  # of any size that the device has; buffers that are not alive at once overlap
LANES = 32  # of a warp


def on_gpu(workload: Workload, target: Target) -> bool:
    """Whether `target` is a GPU, and every index fits 32 bits, in which TVM counts."""
    if target.kind != "cuda":
        return False
    return max(prod(workload.x_shape), prod(workload.y_shape)) < 1 << 31


def vectors(dtype: str, *sizes: int) -> tuple[int, ...]:
    """Elements that can be moved at once along axes of these sizes: powers of two, ascending."""
    widest = VECTOR_BYTES // ITEM_BYTES[dtype]
    return tuple(
        1 << step
        for step in range(widest.bit_length())
        if all(size % (1 << step) == 0 for size in sizes)
    )


def threads(choices: Sequence[int], work: int, target: Target) -> Knob:
    """The knob THREADS, a block's, for `work` independent items: no block is mostly empty."""
    most = max(min(choices), min(target.gpu.threads_per_block, work))
    fitting = tuple(count for count in choices if count <= most)
    # A block for each multiprocessor goes before large blocks.
    spread = [count for count in fitting if work // count >= target.gpu.sms]
    return Knob("THREADS", fitting, max(spread, default=fitting[0]))


def finished(total: Any, bias: Any, workload: Workload) -> Any:
    """An output: bias added and activated in float32, stored in the workload's dtype."""
    return activate(total + bias, workload.activation).astype(workload.dtype)


def multiplied(left: Any, right: Any) -> Any:
    """Two stored values multiplied in float32."""
    return left.astype("float32") * right.astype("float32")


def in_registers(schedule: Schedule, *blocks: SBlockRV) -> None:
    """Let each thread keep what it computes in `blocks` to itself."""
    for block in blocks:
        schedule.set_scope(block, 0, "local")


def vectorize(schedule: Schedule, copy: SBlockRV, width: int) -> None:
    """Move `width` elements of the last axis of `copy` at once."""
    *_, last = schedule.get_loops(copy)
    if width > 1:
        schedule.vectorize(schedule.split(last, [None, width])[1])


def share(
    schedule: Schedule,
    copy: SBlockRV,
    at: LoopRV,
    threads: tuple[int, int],
    width: int,
    made_there: Sequence[SBlockRV] = (),
) -> int:
    """Let a block's threads, so many in y and in x, make a tile together.

    at          the loop whose every turn makes a tile
    width       most elements that one makes at once; returned is how many it does
    made_there  blocks that a thread computes for so many, from the last to the first
    """
    variable = schedule.get(at).loop_var
    loops = schedule.get_loops(copy)
    depth = next(i for i, loop in enumerate(loops) if schedule.get(loop).loop_var.same_as(variable))
    *outer, last = loops[depth + 1 :] or [schedule.add_unit_loop(copy)]
    while width > 1 and int(schedule.get(last).extent) % width:
        width //= 2
    last, _ = schedule.split(last, [None, width])
    for block in made_there:
        schedule.compute_at(block, last, preserve_unit_loops=True)
    _, y, x = schedule.split(schedule.fuse(*outer, last), [None, *threads])
    schedule.bind(y, "threadIdx.y")
    schedule.bind(x, "threadIdx.x")
    written = schedule.get(copy).writes[0].source.dtype
    vectorize(schedule, copy, min(width, VECTOR_BYTES // ITEM_BYTES[str(written)]))
    return width


def unroll_below(schedule: Schedule, thread: LoopRV, *rolled: LoopRV) -> None:
    """Unroll every loop within `thread` but `rolled`, so that arrays become registers.

    The CUDA compiler does it, which reads a loop faster than all its turns.
    """
    kept = [schedule.get(loop).loop_var for loop in rolled]
    for block in schedule.get_child_blocks(thread):
        for loop in schedule.get_loops(block):
            found = schedule.get(loop)
            serial = found.kind == tirx.ForKind.SERIAL
            if serial and not any(found.loop_var.same_as(variable) for variable in kept):
                schedule.unroll(loop)
    schedule.annotate(thread, "pragma_unroll_explicit", 0)
