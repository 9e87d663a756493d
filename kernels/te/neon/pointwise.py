"""Pointwise convolution, NHWC, 64-bit Arm: the matrix product of packed pixels and channels.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p a pixel of the batch
Shapes  x (P,Ci)  wt (Co/BLOCK_CO,Ci,BLOCK_CO)  bias (Co/BLOCK_CO,BLOCK_P,BLOCK_CO), a row a pixel
        y (P,Co)
Types   float32; float16 where the core computes in it, in sums as `kernels.te.product` takes them.
Tiling  A task takes CHUNK tiles of BLOCK_P pixels, or a part of their output channels. It first
        packs the pixels: a vector of each pixel's channels, all pixels of a tile in a row, so that
        one instruction loads four. BLOCK_P x BLOCK_CO sums stay in registers while a loop of
        `kernels.te.neon.loop` runs over all Ci, a lane of a pixel's vector times a row of weights.
Limits  More than one pixel, also in a tile, for TensorIR leaves out a loop over one; what one sum
        takes of Ci is whole vectors. A last tile that is not full sums zeros and leaves out its
        stores.
Source  own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te import product
from kernels.te.llvm.code import NEON
from kernels.te.neon import sums
from kernels.te.neon.loop import weight_steps
from kernels.te.tile import (
    activate,
    divisors,
    keep_in_registers,
    module,
    on_cpu,
    spread,
    unroll,
    vectorize_last,
)
from kernels.workload import ITEM_BYTES, Pointwise, Workload
from targets.target import Target

TASKS = 16  # by default at least, so that several cores have work
MOST_CHUNKS = 12
VECTORS = (1, 2, 3, 4)  # of channels a tile


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Pointwise)
        and on_cpu(workload, target)
        and target.cpu.lane_operand
        and product.terms(workload) % NEON.lanes(workload.dtype) == 0
        and workload.pixels > 1
        and workload.Co >= NEON.lanes(workload.dtype)
    )


def space(workload: Pointwise, target: Target) -> Space:
    """Register tiles that nearly fill the registers; packed pixels that fit half of L2."""
    lanes, l2 = NEON.lanes(workload.dtype), target.cpu.l2_bytes
    tiles = _register_tiles(workload, target)
    widest = min(tiles, key=lambda tile: _instructions(workload, *tile))
    chunks: dict[int, tuple[int, ...]] = {}
    for rows, _ in tiles:
        packed = rows * workload.Ci * ITEM_BYTES[workload.dtype]
        whole = divisors(blocks(workload.pixels, rows))
        fitting = [count for count in whole if 2 * count * packed <= l2] or [1]
        chunks[rows] = spread(fitting, MOST_CHUNKS)
    tasks = blocks(workload.pixels, widest[0])
    enough = [chunk for chunk in chunks[widest[0]] if tasks // chunk >= TASKS]
    steps = [lanes * count for count in (1, 2, 4, 8)]
    unrolls = tuple(count for count in steps if product.terms(workload) % count == 0)
    narrowest = min(columns for _, columns in tiles)
    parts = [count for count in (1, 2, 4) if blocks(workload.Co, narrowest) % count == 0]
    return Space(
        knobs=(
            Knob("BLOCK_P", tuple(sorted(chunks)), widest[0]),
            Knob("BLOCK_CO", tuple(sorted({columns for _, columns in tiles})), widest[1]),
            Knob(
                "CHUNK",
                tuple(sorted(set().union(*chunks.values()))),
                max(enough, default=chunks[widest[0]][0]),
            ),
            Knob("PARTS", tuple(parts), 1),
            Knob("UNROLL_CI", unrolls, unrolls[-1]),
        ),
        constraints=(
            Constraint("register tile", lambda c: (c["BLOCK_P"], c["BLOCK_CO"]) in tiles),
            Constraint("whole chunks", lambda c: c["CHUNK"] in chunks[int(c["BLOCK_P"])]),
            Constraint(
                "whole parts",
                lambda c: blocks(workload.Co, int(c["BLOCK_CO"])) % int(c["PARTS"]) == 0,
            ),
        ),
    )


def lower(workload: Pointwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    rows, columns = int(config["BLOCK_P"]), int(config["BLOCK_CO"])
    lanes, terms = NEON.lanes(workload.dtype), product.terms(workload)
    schedule = Schedule(_formula(workload, rows, columns, lanes))
    schedule.fuse_reduction_epilogue("acc", "biased")
    acc, packed, y = (schedule.get_sblock(name) for name in ("acc", "packed", "y"))
    t, b, p, c, *_ = schedule.get_loops(acc)
    chunk, t = schedule.split(t, [None, int(config["CHUNK"])])
    part, b = schedule.split(b, [int(config["PARTS"]), None])
    schedule.reorder(chunk, part, b, t, p, c)
    schedule.reverse_compute_at(y, t)
    if workload.pixels % rows:
        schedule.annotate(t, "pragma_loop_partition_hint", 1)
    product.join_parts(schedule, workload)
    task = schedule.fuse(chunk, part)
    schedule.compute_at(packed, task)
    schedule.parallel(task)
    _pack(schedule, lanes)

    keep_in_registers(schedule, acc, ITEM_BYTES[workload.dtype] * rows * columns)
    summed = acc
    if terms < workload.Ci:
        summed = schedule.get_sblock("part")
        keep_in_registers(schedule, summed, ITEM_BYTES[workload.dtype] * rows * columns)
        *_, group, p, c = schedule.get_loops(acc)
        vector, lane = schedule.split(c, [None, lanes])
        schedule.vectorize(lane)
        unroll(schedule, p, vector)
        init = schedule.decompose_reduction(acc, group)
        unroll(schedule, *schedule.get_loops(init)[-3:-1])
    *_, p, c, ci = schedule.get_loops(summed)
    schedule.reorder(ci, p, c)
    sums.replace(
        schedule,
        ci,
        task,
        rows=rows,
        columns=columns,
        channels=terms,
        unrolled=int(config["UNROLL_CI"]),
        dtype=workload.dtype,
        biased=terms == workload.Ci,
    )
    vectorize_last(schedule, y, lanes, unrolled=2)
    return schedule.mod


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) -> (Co/BLOCK_CO,Ci,BLOCK_CO), padded with zeros; bias likewise, BLOCK_P times."""
    wt, bias = product.packed(workload, config, *weights)
    return wt, np.repeat(bias[:, None], int(config["BLOCK_P"]), axis=1)


def _register_tiles(workload: Pointwise, target: Target) -> tuple[tuple[int, int], ...]:
    """(pixels, channels) of tiles whose sums, pixels and weights fit the registers."""
    lanes, registers = NEON.lanes(workload.dtype), target.cpu.vector_registers
    tiles: list[tuple[int, int]] = []
    for vectors in product.covering(blocks(workload.Co, lanes), VECTORS):
        weights = weight_steps(vectors, workload.dtype) * vectors
        tallest = min((registers - weights) // (vectors + 1), workload.pixels)
        heights = range(max(2, tallest // 2), tallest + 1)
        tiles += [(rows, lanes * vectors) for rows in product.covering(workload.pixels, heights)]
    return tuple(tiles)


def _instructions(workload: Pointwise, rows: int, columns: int) -> float:
    """For the products of a vector's channels, what all tiles of this size execute."""
    lanes = NEON.lanes(workload.dtype)
    vectors = columns // lanes
    each = weight_steps(vectors, workload.dtype)
    loads = blocks(rows, NEON.group) + lanes // each * blocks(each * vectors, NEON.group)
    tiles = blocks(workload.pixels, rows) * blocks(workload.Co, columns)
    return tiles * (lanes * rows * vectors + loads)


def _formula(workload: Pointwise, rows: int, columns: int, lanes: int) -> IRModule:
    """The unscheduled function, its sum already written tile by tile."""
    P, Ci, Co, dtype = workload.pixels, workload.Ci, workload.Co, workload.dtype
    T, B = blocks(P, rows), blocks(Co, columns)
    x = te.placeholder((P, Ci), dtype, "x")
    wt = te.placeholder((B, Ci, columns), dtype, "wt")
    bias = te.placeholder((B, rows, columns), dtype, "bias")

    def pixel(t: Any, k: Any, p: Any, lane: Any) -> Any:
        value = x[t * rows + p, k * lanes + lane]
        if P % rows == 0:
            return value
        inside = tirx.likely(t * rows + p < P)
        return tirx.if_then_else(inside, value, tirx.const(0, dtype))

    packed = te.compute((T, Ci // lanes, rows, lanes), pixel, name="packed")
    shape = (T, B, rows, columns)
    acc = product.summed(
        workload, shape, lambda t, p, ci: packed[t, ci // lanes, p, ci % lanes], wt
    )
    biased = te.compute(shape, lambda t, b, p, c: acc[t, b, p, c] + bias[b, p, c], name="biased")
    y = te.compute(
        (P, Co),
        lambda p, c: activate(
            biased[p // rows, c // columns, p % rows, c % columns], workload.activation
        ),
        name="y",
    )
    return module(x, wt, bias, y)


def _pack(schedule: Schedule, lanes: int) -> None:
    """Schedule `packed`, which stands in a task already."""
    *_, p, lane = schedule.get_loops(schedule.get_sblock("packed"))
    schedule.vectorize(lane)
    schedule.unroll(p)
