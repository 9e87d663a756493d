"""Depthwise convolution and the pointwise one behind it in one kernel, NHWC, CPU.

Maths   z[n,ho,wo,c] = act(dw_bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                    * dw_wt[kh,kw,c])
        y[n,ho,wo,co] = act(bias[co] + sum_c z[n,ho,wo,c] * wt[c,co])
        x outside the image reads as 0.
Shapes  x (N*Hi*Wi,C)  dw_wt (K,K,C)  dw_bias (C,)  wt (Co/BLOCK_CO,C,BLOCK_CO)
        bias (Co/BLOCK_CO,BLOCK_CO)  y (N*Ho*Wo,Co)
Types   float32; float16 where the core computes in it.
Tiling  A task makes ROWS rows of one image, or a part of their output channels: first all channels
        of z, as `kernels.te.depthwise` does, into a buffer of its own that stays in L2, then y in
        register tiles of `kernels.te.product`. KEEP says what stays while the other passes by: a
        block of weights, or a tile of pixels. With PARTS above 1 so many tasks share the rows, each
        for a part of the output channels, and each computes z anew.
Limits  ROWS rows are whole register tiles, rows are whole tiles of the depthwise part.
Source  own.
"""

from __future__ import annotations

from typing import Any

from tvm import te
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te import product
from kernels.te.tile import (
    activate,
    bordered,
    divisors,
    keep_in_registers,
    lanes,
    module,
    on_cpu,
    pad_last,
    unroll,
    vectorize_last,
    window_span,
)
from kernels.workload import ITEM_BYTES, Separable, Workload
from targets.target import Target


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Separable) and on_cpu(workload, target)


def space(workload: Separable, target: Target) -> Space:
    """Tiles of both parts; what a task stages and makes between them fits L2."""
    Ho, Wo, dtype = workload.Ho, workload.Wo, workload.dtype
    width, registers = lanes(target, dtype, workload.C), target.cpu.vector_registers
    rows = tuple(rows for rows in divisors(Ho) if _fits_l2(workload, rows, target)) or (1,)

    def whole(tiles: range) -> list[int]:
        """Heights that some rows are whole tiles of, but the low ones, which load too much."""
        fitting = [tile for tile in tiles if any(count * Wo % tile == 0 for count in rows)]
        return [tile for tile in fitting if 4 * tile >= 3 * tiles[-1]] or fitting[-1:] or [1]

    tiles = product.register_tiles(workload.pointwise, target, whole)
    widest = max(tiles, key=lambda tile: (tile[0] * tile[1], tile[1]))
    fitting = [count for count in rows if count * Wo % widest[0] == 0]
    columns = tuple(sorted({columns for _, columns in tiles}))
    unrolls, unroll_ci = product.unrolls(workload.pointwise, target)
    parts = [count for count in (1, 2, 4) if blocks(workload.Co, columns[0]) % count == 0]
    widest_row = min(registers - product.FREE_REGISTERS, 14)
    across = tuple(columns for columns in divisors(Wo) if columns <= widest_row)[-2:]
    vectors = [count for count in (1, 2) if count <= blocks(workload.C, width)]
    return Space(
        knobs=(
            Knob("ROWS", rows, fitting[len(fitting) // 2]),
            Knob("BLOCK_P", tuple(sorted({rows for rows, _ in tiles})), widest[0]),
            Knob("BLOCK_CO", columns, widest[1]),
            Knob("UNROLL_CI", unrolls, unroll_ci),
            Knob("KEEP", ("weights", "pixels"), "weights"),
            Knob("PARTS", tuple(parts), 1),
            Knob("BLOCK_WO", across, across[-1]),
            Knob("BLOCK_C", tuple(width * count for count in vectors), width),
        ),
        constraints=(
            Constraint("register tile", lambda c: (c["BLOCK_P"], c["BLOCK_CO"]) in tiles),
            Constraint("whole tiles", lambda c: int(c["ROWS"]) * Wo % int(c["BLOCK_P"]) == 0),
            Constraint(
                "whole parts",
                lambda c: blocks(workload.Co, int(c["BLOCK_CO"])) % int(c["PARTS"]) == 0,
            ),
            Constraint(
                "sums fit registers",
                lambda c: (
                    int(c["BLOCK_WO"]) * int(c["BLOCK_C"]) // width
                    <= registers - product.FREE_REGISTERS
                ),
            ),
        ),
    )


def lower(workload: Separable, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, dw_wt, dw_bias, wt, bias, y)."""
    schedule = Schedule(_formula(workload, config))
    schedule.fuse_reduction_epilogue("acc", "biased")
    schedule.fuse_reduction_epilogue("dw_acc", "dw_biased")
    y, z = schedule.get_sblock("y"), schedule.get_sblock("z")

    t, b, p, c, *_ = schedule.get_loops("acc")
    each = int(config["ROWS"]) * workload.Wo // int(config["BLOCK_P"])
    chunks = workload.Ho // int(config["ROWS"])
    n, chunk, tile = schedule.split(t, [workload.N, chunks, each])
    part, b = schedule.split(b, [int(config["PARTS"]), None])
    inner = (b, tile) if config["KEEP"] == "weights" else (tile, b)
    schedule.reorder(n, chunk, part, *inner, p, c)
    schedule.reverse_compute_at(y, inner[-1])
    product.join_parts(schedule, workload.pointwise)
    schedule.compute_at(z, part, preserve_unit_loops=True)
    _depthwise(schedule, workload, config, target)
    schedule.parallel(schedule.fuse(n, chunk, part))
    product.accumulate(schedule, workload.pointwise, config, target, source="z")
    vectorize_last(schedule, y, lanes(target, workload.dtype, workload.Co), unrolled=2)
    return schedule.mod


def pack(workload: Separable, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """dw_wt (K,K,C) and dw_bias (C,), padded with zeros to whole blocks; wt and bias packed."""
    dw_wt, dw_bias, wt, bias = weights
    channels = int(config["BLOCK_C"])
    return (
        pad_last(dw_wt, channels),
        pad_last(dw_bias, channels).astype(workload.dtype),
        *product.packed(workload.pointwise, config, wt, bias),
    )


def _fits_l2(workload: Separable, rows: int, target: Target) -> bool:
    """Whether what a task stages and makes for so many rows takes at most half of L2."""
    width = lanes(target, workload.dtype, workload.C)
    height, across = window_span(workload.depthwise, (rows, workload.Wo))
    kept = rows * workload.Wo * workload.C + height * across * width
    return 2 * ITEM_BYTES[workload.dtype] * kept <= target.cpu.l2_bytes


def _formula(workload: Separable, config: Config) -> IRModule:
    """The unscheduled function, its sums already written tile by tile."""
    N, C, K, stride, dtype = workload.N, workload.C, workload.K, workload.stride, workload.dtype
    Ho, Wo = workload.Ho, workload.Wo
    BP, BW, BC = (int(config[name]) for name in ("BLOCK_P", "BLOCK_WO", "BLOCK_C"))
    TW, TC = Wo // BW, blocks(C, BC)
    x = te.placeholder((N * workload.Hi * workload.Wi, C), dtype, "x")
    dw_wt = te.placeholder((K, K, TC * BC), dtype, "dw_wt")
    dw_bias = te.placeholder((TC * BC,), dtype, "dw_bias")
    wt, bias = product.arguments(workload.pointwise, int(config["BLOCK_CO"]))
    kh, kw = te.reduce_axis((0, K), "kh"), te.reduce_axis((0, K), "kw")

    staged = bordered(x, workload.depthwise, (Ho, Wo), TC * BC)
    shape = (N, Ho, TC, TW, BW, BC)
    dw_acc = te.compute(
        shape,
        lambda n, h, co, wo, w, c: te.sum(
            staged[n, h * stride + kh, (wo * BW + w) * stride + kw, co * BC + c]
            * dw_wt[kh, kw, co * BC + c],
            [kh, kw],
        ),
        name="dw_acc",
    )
    dw_biased = te.compute(
        shape,
        lambda n, h, co, wo, w, c: dw_acc[n, h, co, wo, w, c] + dw_bias[co * BC + c],
        name="dw_biased",
    )
    z = te.compute(
        (N, Ho * Wo, C),
        lambda n, p, c: activate(
            dw_biased[n, p // Wo, c // BC, p % Wo // BW, p % Wo % BW, c % BC], workload.activation
        ),
        name="z",
    )

    def pixel(p: Any, ci: Any) -> Any:
        return z[p // (Ho * Wo), p % (Ho * Wo), ci]

    biased = product.tiled(workload.pointwise, pixel, wt, bias, BP)
    columns = int(config["BLOCK_CO"])
    y = te.compute(
        (N * Ho * Wo, workload.Co),
        lambda p, c: activate(
            biased[p // BP, c // columns, p % BP, c % columns], workload.activation
        ),
        name="y",
    )
    return module(x, dw_wt, dw_bias, wt, bias, y)


def _depthwise(schedule: Schedule, workload: Separable, config: Config, target: Target) -> None:
    """Schedule `z` and what it is made of, which stand in a task already."""
    width = lanes(target, workload.dtype, workload.C)
    across, channels = int(config["BLOCK_WO"]), int(config["BLOCK_C"])
    z, dw_acc, staged = (schedule.get_sblock(name) for name in ("z", "dw_acc", "staged"))
    *_, p, c = schedule.get_loops(z)
    row, wo, w = schedule.split(p, [None, workload.Wo // across, across])
    co, vector, lane = schedule.split(c, [None, channels // width, width])
    schedule.reorder(co, row, wo, w, vector, lane)
    schedule.compute_at(dw_acc, wo, preserve_unit_loops=True)
    schedule.compute_at(staged, co, preserve_unit_loops=True)
    schedule.vectorize(lane)
    unroll(schedule, w, vector)
    keep_in_registers(schedule, dw_acc, ITEM_BYTES[workload.dtype] * across * channels)
    *_, w, c, kh, kw = schedule.get_loops(dw_acc)
    vector, lane = schedule.split(c, [None, width])
    schedule.reorder(kh, kw, w, vector, lane)
    schedule.vectorize(lane)
    unroll(schedule, kh, kw, w, vector)
    for loop in schedule.get_loops(staged)[-3:-1]:
        schedule.annotate(loop, "pragma_loop_partition_hint", 1)
    vectorize_last(schedule, staged, width, unrolled=1)
