"""The schedule of a matrix product outside tensor cores, whatever makes its left factor.

A block computes BLOCK_P rows x BLOCK_CO columns. BLOCK_CI terms at a time, both factors are staged
in shared memory; from there each thread multiplies ROWS rows by COLUMNS columns in registers.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels.space import Config, Constraint, Knob, blocks
from kernels.te.cuda.product import steps
from kernels.te.cuda.tile import (
    LANES,
    SHARED,
    VECTOR_BYTES,
    in_registers,
    share,
    unroll_below,
    vectorize,
    vectors,
)
from kernels.workload import ITEM_BYTES, Pointwise
from targets.target import Target

MOST_THREADS = 512


def knobs(workload: Pointwise, target: Target) -> tuple[Knob, ...]:
    """By default the largest block that leaves every multiprocessor one."""
    P, Co = workload.pixels, workload.Co
    tiles = ((32, 32, 4, 4), (64, 32, 4, 4), (64, 64, 8, 4), (128, 64, 8, 8), (128, 128, 8, 8))
    busy = [t for t in tiles if blocks(P, t[0]) * blocks(Co, t[1]) >= target.gpu.sms]
    rows, columns, own_rows, own_columns = max(busy, default=tiles[0])
    if workload.dtype == "float16":  # so that a thread stores 16 bytes of a row
        own_rows, own_columns = own_rows * own_columns // 8, 8
    return (
        Knob("BLOCK_P", (16, 32, 64, 128), rows),
        Knob("BLOCK_CO", (32, 64, 128), columns),
        Knob("BLOCK_CI", (16, 32), 32),
        Knob("ROWS", (2, 4, 8), own_rows),
        Knob("COLUMNS", (4, 8), own_columns),
    )


def constraints(target: Target) -> tuple[Constraint, ...]:
    """On those knobs."""
    most = min(MOST_THREADS, target.gpu.threads_per_block)

    def threads(config: Config) -> int:
        y, x = _threads(config)
        return y * x

    return (
        Constraint("whole warps", lambda c: threads(c) % LANES == 0),
        Constraint("threads fit a block", lambda c: 2 * LANES <= threads(c) <= most),
    )


def schedule_product(
    schedule: Schedule,
    workload: Pointwise,
    config: Config,
    stage: Callable[[SBlockRV, LoopRV, tuple[int, int]], None],
) -> None:
    """Schedule the stages that `summed` makes.

    stage  schedules the block that makes the left factor, at a loop, for so many threads in y and x
    """
    widest = VECTOR_BYTES // ITEM_BYTES[workload.dtype]
    BP, BK, BC = steps(config)
    rows, columns = int(config["ROWS"]), int(config["COLUMNS"])
    threads = _threads(config)
    left, acc, y = (schedule.get_sblock(name) for name in ("left", "acc", "y"))
    in_registers(schedule, acc)
    schedule.set_scope(left, 0, SHARED)
    stored = schedule.cache_write(y, 0, "local")
    right = schedule.cache_read(acc, 1, SHARED)
    own_left, own_right = (schedule.cache_read(acc, index, "local") for index in range(2))

    p, c, k = schedule.get_loops(acc)
    po, py, p = schedule.split(p, [None, BP // rows, rows])
    co, cx, c = schedule.split(c, [None, BC // columns, columns])
    ko, k, step = schedule.split(k, [None, BK // widest, widest])
    schedule.reorder(po, co, py, cx, ko, k, step, p, c)
    block = schedule.fuse(po, co)
    for loop, axis in ((block, "blockIdx.x"), (py, "threadIdx.y"), (cx, "threadIdx.x")):
        schedule.bind(loop, axis)
    for consumer in (y, stored):
        schedule.reverse_compute_at(consumer, cx)
    bias = schedule.cache_read(y, 1, "local")
    for producer, loop in ((bias, cx), (own_left, k), (own_right, k), (left, ko), (right, ko)):
        schedule.compute_at(producer, loop)

    share(schedule, right, ko, threads, widest)
    stage(left, ko, threads)
    for tile in (left, right):  # so that a warp's rows lie in different banks
        schedule.storage_align(tile, 0, -2, LANES, widest)
    vectorize(schedule, own_left, widest)
    vectorize(schedule, own_right, min(columns, widest))
    vectorize(schedule, bias, 4)
    vectorize(schedule, stored, min(columns, vectors(workload.dtype, workload.Co)[-1]))
    schedule.decompose_reduction(acc, ko)
    unroll_below(schedule, cx, ko)


def _threads(config: Config) -> tuple[int, int]:
    """A block's, in y and in x."""
    BP, _, BC = steps(config)
    return BP // int(config["ROWS"]), BC // int(config["COLUMNS"])
