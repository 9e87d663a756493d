"""The schedule of a float16 matrix product on tensor cores, whatever makes its left factor.

A block computes BLOCK_P rows x BLOCK_CO columns, a warp a WARPS_P-th x WARPS_CO-th of them in
fragments of 16x16. BLOCK_CI terms at a time, both factors are staged in shared memory, from where
the warps load their fragments. The float32 sums go through shared memory once, so that each thread
finishes and stores whole vectors of a row.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels.space import Config, Constraint, Knob, blocks
from kernels.te.cuda.product import steps
from kernels.te.cuda.tile import LANES, SHARED, share, unroll_below, vectorize, vectors
from kernels.te.cuda.wmma import TILE, instructions
from kernels.workload import Pointwise
from targets.target import Target

SKEW = 8  # values that rows are longer by in shared memory, so that they start in other banks
WIDEST = 8
OUT = "out"


def knobs(workload: Pointwise, target: Target) -> tuple[Knob, ...]:
    """By default the largest block that leaves every multiprocessor one."""
    P, Co = workload.pixels, workload.Co
    sizes = (32, 64, 128)
    busy = [
        (rows * columns, columns, rows)
        for rows in sizes
        for columns in sizes
        if blocks(P, rows) * blocks(Co, columns) >= target.gpu.sms
    ]
    _, columns, rows = max(busy, default=(0, 32, 32))
    return (
        Knob("BLOCK_P", (16, *sizes), rows),
        Knob("BLOCK_CO", (*sizes, 256), columns),
        Knob("BLOCK_CI", (16, 32, 64), 32 if workload.Ci <= 32 else 64),
        Knob("WARPS_P", (1, 2, 4), 2),
        Knob("WARPS_CO", (1, 2, 4), 2),
    )


def constraints(target: Target) -> tuple[Constraint, ...]:
    """On those knobs."""

    def fragments(config: Config) -> tuple[float, float]:
        return (
            int(config["BLOCK_P"]) / int(config["WARPS_P"]) / TILE,
            int(config["BLOCK_CO"]) / int(config["WARPS_CO"]) / TILE,
        )

    def whole(config: Config) -> bool:
        return all(count >= 1 for count in fragments(config))

    def registers(config: Config) -> float:
        rows, columns = fragments(config)
        return 8 * (rows * columns + rows + columns)  # of a thread: 8 for each fragment

    return (
        Constraint("a warp has whole fragments", whole),
        Constraint("fragments fit registers", lambda c: registers(c) <= 160),
        Constraint("two to sixteen warps", lambda c: int(c["WARPS_P"]) * int(c["WARPS_CO"]) >= 2),
        Constraint(
            "tiles fit shared memory",
            lambda c: shared_bytes(c) <= target.gpu.shared_per_block_bytes,
        ),
    )


def shared_bytes(config: Config) -> int:
    """Of a block: both staged tiles, or after them the sums."""
    BP, BK, BC = steps(config)
    staged = 2 * (BP * (BK + SKEW) + BK * (BC + SKEW))
    return max(staged, 4 * BP * (BC + SKEW))


def schedule_product(
    schedule: Schedule,
    workload: Pointwise,
    config: Config,
    stage: Callable[[SBlockRV, LoopRV, tuple[int, int]], None],
) -> None:
    """Schedule the stages that `summed` makes, its sums by way of `OUT`.

    stage  schedules the block that makes the left factor, at a loop, for so many threads in y and x
    """
    BP, BK, BC = steps(config)
    WP, WC = int(config["WARPS_P"]), int(config["WARPS_CO"])
    threads, roles = (WP * WC, LANES), instructions()
    left, acc, out, y = (schedule.get_sblock(name) for name in ("left", "acc", OUT, "y"))
    schedule.set_scope(acc, 0, "wmma.accumulator")
    schedule.set_scope(left, 0, SHARED)
    schedule.set_scope(out, 0, SHARED)
    stored = schedule.cache_write(y, 0, "local")
    right = schedule.cache_read(acc, 1, SHARED)
    a, b = (schedule.cache_read(acc, i, f"wmma.matrix_{'ab'[i]}") for i in range(2))

    p, c, k = schedule.get_loops(acc)
    po, pw, p, pi = schedule.split(p, [None, WP, BP // WP // TILE, TILE])
    co, cw, c, ci = schedule.split(c, [None, WC, BC // WC // TILE, TILE])
    ko, k, ki = schedule.split(k, [None, BK // TILE, TILE])
    schedule.reorder(po, co, pw, cw, ko, k, p, c, pi, ci, ki)
    block, warp = schedule.fuse(po, co), schedule.fuse(pw, cw)
    schedule.bind(block, "blockIdx.x")
    schedule.bind(warp, "threadIdx.y")

    for consumer, loop in ((out, warp), (y, block), (stored, block)):
        schedule.reverse_compute_at(consumer, loop)
    for producer, loop in ((a, k), (b, k), (left, ko), (right, ko)):
        schedule.compute_at(producer, loop)
    for tile in (left, right, out):
        schedule.storage_align(tile, 0, -2, 2 * SKEW, SKEW)
    share(schedule, right, ko, threads, WIDEST)
    stage(left, ko, threads)
    stored_width = vectors(workload.dtype, workload.Co)[-1]
    sums, bias = (schedule.cache_read(y, index, "local") for index in range(2))
    width = share(schedule, stored, block, threads, stored_width, (y, sums, bias))
    for read in (sums, bias):
        vectorize(schedule, read, min(width, 4))

    init = schedule.decompose_reduction(acc, ko)
    schedule.tensorize(schedule.get_loops(init)[-2], roles["fill"])
    for tile, role in ((a, "load_a"), (b, "load_b"), (out, "store")):
        rows, columns = schedule.get_loops(tile)[-2:]
        rows, i = schedule.split(rows, [None, TILE])
        columns, j = schedule.split(columns, [None, TILE])
        schedule.reorder(rows, columns, i, j)
        schedule.tensorize(i, roles[role])
    schedule.tensorize(pi, roles["multiply"])
    unroll_below(schedule, block, ko)
