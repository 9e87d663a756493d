"""The product of pixels and packed weights in register tiles: what pointwise kernels are made of.

Tiling  BLOCK_P pixels x BLOCK_CO channels are accumulated in registers, from the bias on, while the
        loop runs over all Ci: a step is BLOCK_P broadcasts and one row of packed weights. Where a
        multiply-add takes one lane of a register as a factor, a vector of each pixel's channels is
        held for as many steps. Steps are unrolled UNROLL_CI times.
Types   float16 in sums of HALF_TERMS products, and these again in float16: as exact as
        `kernels.tolerance` asks, and nearly as fast as one sum.
Source  own; for the register tile Goto and van de Geijn, "Anatomy of High-Performance Matrix
        Multiplication", 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels.reference import Array
from kernels.space import Config, blocks
from kernels.te.tile import divisors, keep_in_registers, lanes, pad_last, unroll
from kernels.tolerance import HALF_TERMS
from kernels.workload import ITEM_BYTES, Pointwise
from targets.target import Target

FREE_REGISTERS = 4


def register_tiles(
    workload: Pointwise, target: Target, heights: Callable[[range], Iterable[int]]
) -> tuple[tuple[int, int], ...]:
    """(pixels, channels) of tiles whose accumulators take from half to nearly all registers.

    heights  those that fit the image, of a range of possible ones

    The other registers hold a row of weights and a pixel, or the loop would spill; where factors
    are lanes, a vector of each pixel.
    """
    width = lanes(target, workload.dtype, workload.Co)
    registers = target.cpu.vector_registers
    tiles: list[tuple[int, int]] = []
    for vectors in covering(blocks(workload.Co, width), (1, 2, 3, 4, 6)):
        if target.cpu.lane_operand:
            tallest = (registers - vectors) // (vectors + 1)
        else:
            tallest = (registers - FREE_REGISTERS) // vectors
        tallest = min(tallest, workload.pixels)
        rows = heights(range(max(1, tallest // 2), tallest + 1))
        tiles += [(count, width * vectors) for count in rows]
    return tuple(tiles)


def unrolls(workload: Pointwise, target: Target) -> tuple[tuple[int, ...], int]:
    """Choices of UNROLL_CI, and the default: whole vectors of channels where a factor is a lane."""
    held = target.cpu.lanes(workload.dtype)
    steps = (1, held, 2 * held, 4 * held) if target.cpu.lane_operand else (1, 2, 4)
    choices = tuple(count for count in steps if terms(workload) % count == 0)
    return choices, max(count for count in choices if count <= max(4, held))


def terms(workload: Pointwise) -> int:
    """How many products one sum takes in the workload's dtype: all, but for float16."""
    if workload.dtype == "float32":
        return workload.Ci
    return max(count for count in divisors(workload.Ci) if count <= HALF_TERMS)


def covering(size: int, tiles: Iterable[int]) -> list[int]:
    """Of `tiles`, those that cover `size` with nearly the least waste."""
    covered = {tile: blocks(size, tile) * tile for tile in tiles}
    return [tile for tile, total in covered.items() if total <= 1.03 * min(covered.values())]


def arguments(workload: Pointwise, columns: int) -> tuple[Any, Any]:
    """Placeholders of wt (Co/BLOCK_CO,Ci,BLOCK_CO) and bias (Co/BLOCK_CO,BLOCK_CO)."""
    B = blocks(workload.Co, columns)
    wt = te.placeholder((B, workload.Ci, columns), workload.dtype, "wt")
    return wt, te.placeholder((B, columns), workload.dtype, "bias")


def tiled(
    workload: Pointwise, pixel: Callable[[Any, Any], Any], wt: Any, bias: Any, rows: int
) -> Any:
    """The stage `acc` (T,B,rows,columns), tile by tile of pixels and channels, and its bias.

    pixel  from a pixel of the batch and a channel to its value
    """
    shape = (blocks(workload.pixels, rows), int(wt.shape[0]), rows, int(wt.shape[-1]))
    acc = summed(workload, shape, lambda t, p, ci: pixel(t * rows + p, ci), wt)
    return te.compute(shape, lambda t, b, p, c: acc[t, b, p, c] + bias[b, c], name="biased")


def summed(
    workload: Pointwise, shape: Sequence[int], pixel: Callable[[Any, Any, Any], Any], wt: Any
) -> Any:
    """The stage `acc` (T,B,rows,columns) alone.

    pixel  from a tile, a pixel of it and a channel to its value
    """
    Ci, each = workload.Ci, terms(workload)
    group, ci = te.reduce_axis((0, Ci // each), "group"), te.reduce_axis((0, each), "ci")

    def product(t: Any, b: Any, p: Any, c: Any, ci: Any) -> Any:
        return pixel(t, p, ci) * wt[b, ci, c]

    if each == Ci:
        return te.compute(shape, lambda t, b, p, c: te.sum(product(t, b, p, c, ci), ci), name="acc")
    part = te.compute(
        (*shape, Ci // each),
        lambda t, b, p, c, g: te.sum(product(t, b, p, c, g * each + ci), ci),
        name="part",
    )
    return te.compute(shape, lambda t, b, p, c: te.sum(part[t, b, p, c, group], group), name="acc")


def join_parts(schedule: Schedule, workload: Pointwise) -> None:
    """Where a sum is one of several sums, let a tile of these be taken within a tile of `acc`.

    To be called when the loops over tiles stand, before `accumulate`.
    """
    if terms(workload) < workload.Ci:
        *_, p, c, group = schedule.get_loops("acc")
        schedule.reorder(group, p, c)
        schedule.compute_at("part", group, preserve_unit_loops=True)
        *_, p, c, one, _ = schedule.get_loops("part")
        schedule.reorder(one, p, c)


def accumulate(
    schedule: Schedule,
    workload: Pointwise,
    config: Config,
    target: Target,
    *,
    source: str,
    burst: int = 0,
) -> None:
    """Schedule a tile of `acc`; the loops over tiles are as they shall be.

    source  the buffer that pixels come from
    burst   split the loop over channels at so many of them; 0 leaves it whole
    """
    width = lanes(target, workload.dtype, workload.Co)
    acc = summed = schedule.get_sblock("acc")
    held_bytes = ITEM_BYTES[workload.dtype] * int(config["BLOCK_P"]) * int(config["BLOCK_CO"])
    keep_in_registers(schedule, acc, held_bytes)
    if terms(workload) < workload.Ci:
        summed = schedule.get_sblock("part")
        keep_in_registers(schedule, summed, held_bytes)
        *_, group, p, c = schedule.get_loops(acc)
        vector, lane = schedule.split(c, [None, width])
        schedule.vectorize(lane)
        unroll(schedule, p, vector)
        init = schedule.decompose_reduction(acc, group)
        unroll(schedule, *schedule.get_loops(init)[-3:-1])
    *_, p, c, ci = schedule.get_loops(summed)
    steps = int(config["UNROLL_CI"])
    outer, ci, step = schedule.split(ci, [None, (burst or terms(workload)) // steps, steps])
    vector, lane = schedule.split(c, [None, width])
    schedule.reorder(outer, ci, step, p, vector, lane)
    if target.cpu.lane_operand and steps % width == 0:
        step = _hold_pixels(schedule, summed, step, width, source)
    unroll(schedule, step, p, vector)
    schedule.vectorize(lane)
    init = schedule.decompose_reduction(summed, outer)
    unroll(schedule, *schedule.get_loops(init)[-3:-1])


def packed(workload: Pointwise, config: Config, wt: Array, bias: Array) -> tuple[Array, Array]:
    """wt (Ci,Co) -> (Co/BLOCK_CO,Ci,BLOCK_CO) and bias likewise, channels padded with zeros."""
    columns = int(config["BLOCK_CO"])
    blocked = pad_last(wt, columns).reshape(workload.Ci, -1, columns).transpose(1, 0, 2)
    biases = pad_last(bias, columns).astype(workload.dtype)
    return np.ascontiguousarray(blocked), biases.reshape(-1, columns)


def _hold_pixels(
    schedule: Schedule, acc: SBlockRV, step: LoopRV, width: int, source: str
) -> LoopRV:
    """Load `width` channels of a pixel at once, for `width` steps that use a lane each."""
    outer, inner = schedule.split(step, [None, width])
    pixels = schedule.cache_read(acc, source, "global")
    schedule.compute_at(pixels, outer, preserve_unit_loops=True)
    *_, p, lane = schedule.get_loops(pixels)
    schedule.unroll(p)
    schedule.vectorize(lane)
    schedule.unroll(inner)
    return outer
