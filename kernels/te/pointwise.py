"""Pointwise convolution, NHWC, CPU: the matrix product of pixels and channels.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p a pixel of the batch
Shapes  x (P,Ci)  wt (Co/BLOCK_CO,Ci,BLOCK_CO)  bias (Co/BLOCK_CO,BLOCK_CO)  y (P,Co)
Types   float32; float16 where the core computes in it.
Tiling  Register tiles of `kernels.te.product`. CHUNK of them share a block of weights before the
        next block comes: CHUNK 1 keeps pixels in L1 and streams weights, CHUNK all keeps a block
        of weights and streams pixels.
Limits  none on sizes: a last tile that is not full reads zeros and leaves out its stores, in a copy
        of the loop of its own, so that full tiles carry no condition.
Source  own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te import product
from kernels.te.prefetch import prefetch
from kernels.te.tile import (
    LINE_BYTES,
    activate,
    divisors,
    lanes,
    module,
    on_cpu,
    spread,
    vectorize_last,
)
from kernels.workload import ITEM_BYTES, Pointwise, Workload
from targets.target import Target

TASKS = 16  # by default at least, so that several cores have work
MOST_CHUNKS = 32


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Pointwise) and on_cpu(workload, target)


def space(workload: Pointwise, target: Target) -> Space:
    """Register tiles that nearly fill the registers, and how long a block of weights is kept."""
    pixels = workload.pixels
    tiles = product.register_tiles(workload, target, lambda rows: product.covering(pixels, rows))
    chunks = {rows: spread(divisors(blocks(pixels, rows)), MOST_CHUNKS) for rows, _ in tiles}
    rows = tuple(sorted({rows for rows, _ in tiles}))
    columns = tuple(sorted({columns for _, columns in tiles}))
    counts = tuple(sorted(set().union(*chunks.values())))
    # The largest tile, and of several the squarest, which loads least.
    widest = max(tiles, key=lambda tile: (tile[0] * tile[1], tile[1]))
    unrolls, unroll = product.unrolls(workload, target)
    terms = product.terms(workload)
    chunk = _default_chunk(chunks[widest[0]], blocks(workload.Co, widest[1]))
    bursts = tuple(steps for steps in (32, 64, 128) if terms == workload.Ci and terms % steps == 0)
    return Space(
        knobs=(
            Knob("BLOCK_P", rows, widest[0]),
            Knob("BLOCK_CO", columns, widest[1]),
            Knob("CHUNK", counts, chunk),
            Knob("UNROLL_CI", unrolls, unroll),
            Knob("PREFETCH", (0, *bursts), 0),
        ),
        constraints=(
            Constraint("register tile", lambda c: (c["BLOCK_P"], c["BLOCK_CO"]) in tiles),
            Constraint("whole chunks", lambda c: c["CHUNK"] in chunks[int(c["BLOCK_P"])]),
        ),
    )


def lower(workload: Pointwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    rows, columns = int(config["BLOCK_P"]), int(config["BLOCK_CO"])
    P = workload.pixels
    schedule = Schedule(_formula(workload, rows, columns))
    schedule.fuse_reduction_epilogue("acc", "biased")
    acc, y = schedule.get_sblock("acc"), schedule.get_sblock("y")
    t, co, p, c, *_ = schedule.get_loops(acc)
    chunk, tile = schedule.split(t, [blocks(P, rows) // int(config["CHUNK"]), None])
    schedule.reorder(chunk, co, tile, p, c)
    schedule.reverse_compute_at(y, tile)
    if P % rows:
        schedule.annotate(tile, "pragma_loop_partition_hint", 1)
    product.join_parts(schedule, workload)
    schedule.parallel(schedule.fuse(chunk, co))
    burst = int(config["PREFETCH"])
    product.accumulate(schedule, workload, config, target, source="x", burst=burst)
    vectorize_last(schedule, y, lanes(target, workload.dtype, workload.Co), unrolled=2)
    if burst:
        _prefetch_next_block(schedule, workload, config)
    return schedule.mod


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) -> (Co/BLOCK_CO,Ci,BLOCK_CO) and bias likewise, channels padded with zeros."""
    return product.packed(workload, config, *weights)


def _default_chunk(chunks: Sequence[int], columns: int) -> int:
    """The largest of `chunks`, the last of which is all tiles, that leaves enough tasks."""
    enough = [chunk for chunk in chunks if chunks[-1] // chunk * columns >= TASKS]
    return max(enough, default=chunks[0])


def _formula(workload: Pointwise, rows: int, columns: int) -> IRModule:
    """The unscheduled function, its sum already written tile by tile."""
    P, dtype = workload.pixels, workload.dtype
    x = te.placeholder((P, workload.Ci), dtype, "x")
    wt, bias = product.arguments(workload, columns)

    def pixel(p: Any, ci: Any) -> Any:
        if P % rows == 0:
            return x[p, ci]
        return tirx.if_then_else(tirx.likely(p < P), x[p, ci], tirx.const(0, dtype))

    biased = product.tiled(workload, pixel, wt, bias, rows)
    y = te.compute(
        (P, workload.Co),
        lambda p, c: activate(
            biased[p // rows, c // columns, p % rows, c % columns], workload.activation
        ),
        name="y",
    )
    return module(x, wt, bias, y)


def _prefetch_next_block(schedule: Schedule, workload: Pointwise, config: Config) -> None:
    """While a block of weights is in use, bring the next one to L2, some lines at a time."""
    block, tile, ci = schedule.get_loops("acc_update")[:3]
    outer, inner, step = (schedule.get(loop) for loop in (block, tile, ci))
    columns, B = int(config["BLOCK_CO"]), blocks(workload.Co, int(config["BLOCK_CO"]))
    line = LINE_BYTES // ITEM_BYTES[workload.dtype]
    each = blocks(workload.Ci * columns, line * int(config["CHUNK"]) * int(step.extent))
    first = (inner.loop_var * step.extent + step.loop_var) * each
    following = outer.loop_var % B + 1
    prefetch(
        schedule,
        ci,
        "wt",
        each,
        lambda i: [following, (first + i) * line // columns, (first + i) * line % columns],
    )
