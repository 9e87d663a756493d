"""Pointwise convolution as a register-tiled matrix product, NHWC, CPU.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p counting the pixels of all images.
Shapes  x (N*H*W,Ci)  wt (Co/BLOCK_CO,Ci,BLOCK_CO)  bias (Co/BLOCK_CO,BLOCK_CO)  y (N*H*W,Co)
Types   float32; float16 where the core computes in it, HALF_TERMS products at a time, and these
        sums again in float16: as exact as `kernels.tolerance` asks, and nearly as fast as one sum.
Tiling  BLOCK_P pixels x BLOCK_CO channels are accumulated in registers, from the bias on, while the
        loop runs over all Ci: a step is BLOCK_P broadcasts and one row of packed weights. CHUNK
        such tiles share a block of weights before the next block comes: CHUNK 1 keeps pixels in L1
        and streams weights, CHUNK all keeps a block of weights and streams pixels.
Limits  none on sizes: a last tile that is not full reads zeros and leaves out its stores, in a copy
        of the loop of its own, so that full tiles carry no condition.
Source  own; for the register tile Goto and van de Geijn, "Anatomy of High-Performance Matrix
        Multiplication", 2008.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space
from kernels.te.prefetch import prefetch
from kernels.te.tile import (
    activate,
    blocks,
    divisors,
    keep_in_registers,
    lanes,
    module,
    on_cpu,
    pad_last,
    unroll,
    vectorize_last,
)
from kernels.tolerance import HALF_TERMS
from kernels.workload import ITEM_BYTES, Pointwise, Workload
from targets.target import Target

LINE_BYTES = 64
FREE_REGISTERS = 4
TASKS = 16  # by default at least, so that several cores have work


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Pointwise) and on_cpu(workload, target)


def space(workload: Pointwise, target: Target) -> Space:
    """Register tiles that nearly fill the registers, and how long a block of weights is kept."""
    tiles = _register_tiles(workload, target)
    chunks = {rows: divisors(blocks(_pixels(workload), rows)) for rows, _ in tiles}
    rows = tuple(sorted({rows for rows, _ in tiles}))
    columns = tuple(sorted({columns for _, columns in tiles}))
    counts = tuple(sorted(set().union(*chunks.values())))
    # The largest tile, and of several the squarest, which loads least.
    widest = max(tiles, key=lambda tile: (tile[0] * tile[1], tile[1]))
    # Where a factor may be a lane, steps come in whole vectors of channels.
    held = target.cpu.lanes(workload.dtype)
    steps = (1, held, 2 * held, 4 * held) if target.cpu.lane_operand else (1, 2, 4)
    terms = _terms(workload)
    unrolls = tuple(count for count in steps if terms % count == 0)
    chunk = _default_chunk(chunks[widest[0]], blocks(workload.Co, widest[1]))
    bursts = tuple(steps for steps in (32, 64, 128) if terms == workload.Ci and terms % steps == 0)
    return Space(
        knobs=(
            Knob("BLOCK_P", rows, widest[0]),
            Knob("BLOCK_CO", columns, widest[1]),
            Knob("CHUNK", counts, chunk),
            Knob("UNROLL_CI", unrolls, max(count for count in unrolls if count <= max(4, held))),
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
    width = lanes(target, workload.dtype, workload.Co)
    P = _pixels(workload)
    T = blocks(P, rows)

    schedule = Schedule(_formula(workload, rows, columns))
    schedule.fuse_reduction_epilogue("acc", "biased")
    acc, y = schedule.get_sblock("acc"), schedule.get_sblock("y")
    t, co, p, c, *_ = schedule.get_loops(acc)
    chunk, tile = schedule.split(t, [T // int(config["CHUNK"]), None])
    schedule.reorder(chunk, co, tile, p, c)
    schedule.reverse_compute_at(y, tile)
    held_bytes = ITEM_BYTES[workload.dtype] * rows * columns
    keep_in_registers(schedule, acc, held_bytes)
    if P % rows:
        schedule.annotate(tile, "pragma_loop_partition_hint", 1)
    schedule.parallel(schedule.fuse(chunk, co))

    summed = acc
    if _terms(workload) < workload.Ci:
        summed = _sum_parts(schedule, acc, width)
        keep_in_registers(schedule, summed, held_bytes)
    *_, p, c, ci = schedule.get_loops(summed)
    steps, between = int(config["UNROLL_CI"]), int(config["PREFETCH"]) or _terms(workload)
    burst, ci, step = schedule.split(ci, [None, between // steps, steps])
    vector, lane = schedule.split(c, [None, width])
    schedule.reorder(burst, ci, step, p, vector, lane)
    if target.cpu.lane_operand and steps % width == 0:
        step = _hold_pixels(schedule, summed, step, width)
    unroll(schedule, step, p, vector)
    schedule.vectorize(lane)
    init = schedule.decompose_reduction(summed, burst)
    unroll(schedule, *schedule.get_loops(init)[-3:-1])
    vectorize_last(schedule, y, width, unrolled=2)
    if config["PREFETCH"]:
        _prefetch_next_block(schedule, workload, config)
    return schedule.mod


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) -> (Co/BLOCK_CO,Ci,BLOCK_CO) and bias likewise, channels padded with zeros."""
    wt, bias = weights
    columns = int(config["BLOCK_CO"])
    packed = pad_last(wt, columns).reshape(workload.Ci, -1, columns).transpose(1, 0, 2)
    biases = pad_last(bias, columns).astype(workload.dtype)
    return np.ascontiguousarray(packed), biases.reshape(-1, columns)


def _pixels(workload: Pointwise) -> int:
    return workload.N * workload.H * workload.W


def _terms(workload: Pointwise) -> int:
    """How many products one sum takes in the workload's dtype: all, but for float16."""
    if workload.dtype == "float32":
        return workload.Ci
    return max(count for count in divisors(workload.Ci) if count <= HALF_TERMS)


def _register_tiles(workload: Pointwise, target: Target) -> tuple[tuple[int, int], ...]:
    """(pixels, channels) of tiles whose accumulators take from half to nearly all registers.

    The others hold a row of weights and a pixel, or the loop would spill; where factors are lanes,
    a vector of each pixel. Of the heights and widths that fit, only those that leave hardly any
    part of the last tile empty.
    """
    width = lanes(target, workload.dtype, workload.Co)
    registers, pixels = target.cpu.vector_registers, _pixels(workload)
    tiles: list[tuple[int, int]] = []
    for vectors in _covering(blocks(workload.Co, width), (1, 2, 3, 4, 6)):
        if target.cpu.lane_operand:
            tallest = (registers - vectors) // (vectors + 1)
        else:
            tallest = (registers - FREE_REGISTERS) // vectors
        tallest = min(tallest, pixels)
        heights = _covering(pixels, range(max(1, tallest // 2), tallest + 1))
        tiles += [(rows, width * vectors) for rows in heights]
    return tuple(tiles)


def _default_chunk(chunks: Sequence[int], columns: int) -> int:
    """The largest of `chunks`, the last of which is all tiles, that leaves enough tasks."""
    enough = [chunk for chunk in chunks if chunks[-1] // chunk * columns >= TASKS]
    return max(enough, default=chunks[0])


def _covering(size: int, tiles: Iterable[int]) -> list[int]:
    """Of `tiles`, those that cover `size` with nearly the least waste."""
    covered = {tile: blocks(size, tile) * tile for tile in tiles}
    return [tile for tile, total in covered.items() if total <= 1.03 * min(covered.values())]


def _formula(workload: Pointwise, rows: int, columns: int) -> IRModule:
    """The unscheduled function, its sum already written tile by tile."""
    P, Ci, Co, dtype = _pixels(workload), workload.Ci, workload.Co, workload.dtype
    T, B = blocks(P, rows), blocks(Co, columns)
    x = te.placeholder((P, Ci), dtype, "x")
    wt = te.placeholder((B, Ci, columns), dtype, "wt")
    bias = te.placeholder((B, columns), dtype, "bias")
    terms = _terms(workload)
    group, ci = te.reduce_axis((0, Ci // terms), "group"), te.reduce_axis((0, terms), "ci")

    def pixel(p: Any, ci: Any) -> Any:
        if P % rows == 0:
            return x[p, ci]
        return tirx.if_then_else(tirx.likely(p < P), x[p, ci], tirx.const(0, dtype))

    shape = (T, B, rows, columns)

    def product(t: Any, b: Any, p: Any, c: Any, ci: Any) -> Any:
        return pixel(t * rows + p, ci) * wt[b, ci, c]

    if terms == Ci:
        acc = te.compute(shape, lambda t, b, p, c: te.sum(product(t, b, p, c, ci), ci), name="acc")
    else:
        part = te.compute(
            (*shape, Ci // terms),
            lambda t, b, p, c, g: te.sum(product(t, b, p, c, g * terms + ci), ci),
            name="part",
        )
        acc = te.compute(
            shape, lambda t, b, p, c: te.sum(part[t, b, p, c, group], group), name="acc"
        )
    biased = te.compute(shape, lambda t, b, p, c: acc[t, b, p, c] + bias[b, c], name="biased")
    y = te.compute(
        (P, Co),
        lambda p, c: activate(
            biased[p // rows, c // columns, p % rows, c % columns], workload.activation
        ),
        name="y",
    )
    return module(x, wt, bias, y)


def _sum_parts(schedule: Schedule, acc: SBlockRV, width: int) -> SBlockRV:
    """Add up sums of some channels each, a tile of them at a time; the block of one such sum."""
    *_, p, c, group = schedule.get_loops(acc)
    schedule.reorder(group, p, c)
    part = schedule.get_sblock("part")
    schedule.compute_at(part, group)
    vector, lane = schedule.split(c, [None, width])
    schedule.vectorize(lane)
    unroll(schedule, p, vector)
    init = schedule.decompose_reduction(acc, group)
    unroll(schedule, *schedule.get_loops(init)[-3:-1])
    return part


def _hold_pixels(schedule: Schedule, acc: SBlockRV, step: LoopRV, width: int) -> LoopRV:
    """Load `width` channels of a pixel at once, for `width` steps that use a lane each."""
    outer, inner = schedule.split(step, [None, width])
    pixels = schedule.cache_read(acc, "x", "global")
    schedule.compute_at(pixels, outer)
    *_, p, lane = schedule.get_loops(pixels)
    schedule.unroll(p)
    schedule.vectorize(lane)
    schedule.unroll(inner)
    return outer


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
