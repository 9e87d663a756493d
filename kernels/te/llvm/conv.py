"""Convolution over few input channels, the network's stem, NHWC, CPU.

Maths   y[n,ho,wo,co] = act(bias[co] + sum_{kh,kw,ci} x[n, ho*stride+kh-top, wo*stride+kw-left, ci]
                                                      * wt[kh,kw,ci,co])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,Ci)  wt (Co/BLOCK_CO,K*K*Ci,BLOCK_CO)  y (N,Ho,Wo,Co)
        bias (Co/BLOCK_CO,BLOCK_WO,BLOCK_CO), a row a pixel
Types   float32; float16 where the core computes in it.
Tiling  A task computes one row of an image, BLOCK_WO outputs x BLOCK_CO channels at a time, without
        a loop and without a copy of the image: each value is multiplied with a row of weights.
        Where a factor can be a lane, a row of the input under them is loaded as it lies; elsewhere
        a value is loaded to all lanes.
Limits  at most 64 taps (K*K*Ci), because they are unrolled; Co is whole vectors; where factors are
        lanes, a row under a tile has a vector's values at least.
Source  own.
"""

from __future__ import annotations

import numpy as np
from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te.llvm.code import Code, isa_of
from kernels.te.llvm.image import Side, across, scheduled
from kernels.te.tile import divisors, on_cpu
from kernels.workload import Conv, Workload
from targets.target import Target

MOST_TAPS = 64
MOST_COLUMNS = 14
BROADCAST = 3  # values in all lanes at a time


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Conv)
        and workload.terms <= MOST_TAPS
        and on_cpu(workload, target)
        and workload.Co % isa_of(target).lanes(workload.dtype) == 0
        and bool(_tiles(workload, target))
    )


def space(workload: Conv, target: Target) -> Space:
    """Register tiles that nearly fill the registers."""
    tiles, lanes = _tiles(workload, target), isa_of(target).lanes(workload.dtype)
    # The one that loads least for a product.
    widest = max(tiles, key=lambda tile: (tile[0] * tile[1] / (tile[0] * lanes + tile[1]), tile[1]))
    return Space(
        knobs=(
            Knob("BLOCK_WO", tuple(sorted({columns for columns, _ in tiles})), widest[0]),
            Knob("BLOCK_CO", tuple(sorted({channels for _, channels in tiles})), widest[1]),
        ),
        constraints=(
            Constraint("register tile", lambda c: (c["BLOCK_WO"], c["BLOCK_CO"]) in tiles),
        ),
    )


def lower(workload: Conv, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    columns, channels = int(config["BLOCK_WO"]), int(config["BLOCK_CO"])
    calls = workload.Co // channels
    return scheduled(
        workload,
        lambda vertical, horizontal: _code(workload, target, channels, vertical, horizontal),
        tile=(1, columns),
        channels=channels,
        parts=1,
        wt=(calls, workload.terms, channels),
        bias=(calls, columns, channels),
    )


def pack(workload: Conv, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (K,K,Ci,Co) -> (Co/BLOCK_CO,K*K*Ci,BLOCK_CO), bias (Co,) likewise, BLOCK_WO times."""
    wt, bias = weights
    channels = int(config["BLOCK_CO"])
    packed = wt.reshape(workload.terms, -1, channels).transpose(1, 0, 2)
    rows = bias.astype(workload.dtype).reshape(-1, 1, channels)
    return np.ascontiguousarray(packed), np.repeat(rows, int(config["BLOCK_WO"]), axis=1)


def _tiles(workload: Conv, target: Target) -> tuple[tuple[int, int], ...]:
    """(outputs, channels) of tiles that fit the registers, and whose rows fill a vector."""
    isa, registers = isa_of(target), target.cpu.vector_registers
    lanes, most = isa.lanes(workload.dtype), max(2, isa.group)
    found = []
    for vectors in (count for count in divisors(workload.Co // lanes) if count <= most):
        for columns in range(1, min(workload.Wo, MOST_COLUMNS) + 1):
            held, fills = columns * vectors, True
            if target.cpu.lane_operand:
                values = ((columns - 1) * workload.stride + workload.K) * workload.Ci
                held += blocks(values, lanes) + isa.group
                fills = lanes <= min(
                    len(side.inside(workload.K, workload.stride)) * workload.Ci
                    for side in across(workload, columns)
                )
            else:
                held += vectors + BROADCAST
            if held <= registers and fills:
                found.append((columns, lanes * vectors))
    fullest = max((columns * channels for columns, channels in found), default=0)
    return tuple(tile for tile in found if 2 * tile[0] * tile[1] >= fullest)


def _code(
    workload: Conv, target: Target, channels: int, vertical: Side, horizontal: Side
) -> tuple[str, str]:
    """Name and code of `int (y, x, wt, bias)`, which makes a tile of one row."""
    K, stride, Ci, isa = workload.K, workload.stride, workload.Ci, isa_of(target)
    code = Code(isa, workload.dtype)
    lanes = code.lanes
    vectors = channels // lanes
    pixels = horizontal.inside(K, stride)
    sums = [code.load_at("%bias", cell * lanes) for cell in range(horizontal.outputs * vectors)]
    x, wt = "%x", "%wt"
    row_of_x = code.hidden(workload.Wi * Ci)
    each = max(1, isa.group // vectors)
    for kh in vertical.inside(K, stride):
        row = _row(code, x, len(pixels) * Ci) if target.cpu.lane_operand else []
        taps = [(kw, ci) for kw in range(K) for ci in range(Ci)]
        weights = code.behind(wt, kh * K * Ci * channels)
        for first in range(0, len(taps), each):
            some = taps[first : first + each]
            loaded, weights = code.load(weights, len(some) * vectors)
            for number, (kw, ci) in enumerate(some):
                for wo in range(horizontal.outputs):
                    j = wo * stride + kw
                    if j in pixels:
                        at = (j - horizontal.before) * Ci + ci
                        factor = code.lane(*row[at]) if row else code.broadcast(x, at)
                        for v in range(vectors):
                            cell = wo * vectors + v
                            taken = loaded[number * vectors + v]
                            sums[cell] = code.multiply_add(factor, taken, sums[cell])
            (x, weights), sums = code.step((x, weights), sums)
        x = code.advance(x, row_of_x)
    for cell, value in enumerate(sums):
        wo, v = divmod(cell, vectors)
        done = code.activate(value, workload.activation)
        code.store(done, code.behind("%y", wo * workload.Co + v * lanes))
    return code.function(("ptr %y", "ptr %x", "ptr %wt", "ptr %bias"))


def _row(code: Code, pointer: str, size: int) -> list[tuple[str, int]]:
    """Of so many values, the vector that each is in and its lane; nothing behind them is read."""
    lanes = code.lanes
    loaded, _ = code.load(pointer, size // lanes)
    places = [(vector, lane) for vector in loaded for lane in range(lanes)]
    if rest := size % lanes:
        last = code.load_at(pointer, size - lanes)
        places += [(last, lane) for lane in range(lanes - rest, lanes)]
    return places
