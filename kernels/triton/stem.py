"""Convolution over few input channels, the network's stem, NHWC, Triton.

Maths   y[n,ho,wo,co] = act(bias[co] + sum_{kh,kw,ci} x[n, ho*stride+kh-top, wo*stride+kw-left, ci]
                                                      * wt[kh,kw,ci,co])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,Ci)  wt (T,Co)  bias (Co,)  y (N,Ho,Wo,Co); each row of K*Ci terms is padded to
        whole loads, T, all the terms, to a power of two, and Co to whole blocks
Types   storage workload.dtype, bias and accumulation float32; PRECISION says how float32 is
        multiplied, see tile.precisions.
Tiling  One program computes BLOCK_HO rows x BLOCK_WO columns x BLOCK_CO channels of one image: the
        terms of its pixels times the weights, in one product of matrices. Terms are gathered one by
        one, or in float16 two by two where all rows of windows start at 4 bytes: what a GPU has too
        few of here is instructions, and of those each load needs several.
Limits  at most 128 terms, because they are one tile; less than 2**30 elements an image. Where a row
        has an odd number of terms, a pair has the next pixel's first value, times 0: x is finite.
Source  own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import triton
from triton import language as tl

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.triton.call import Call, Launch, Tensor
from kernels.triton.tile import (
    MOST_ELEMENTS,
    MOST_SUMS,
    WARP,
    activate,
    await_previous,
    choices,
    cover,
    filling,
    on_gpu,
    padded,
    precisions,
    window,
)
from kernels.workload import ITEM_BYTES, Conv, Workload
from targets.target import Target

TILE = ("BLOCK_HO", "BLOCK_WO", "BLOCK_CO")
MOST_TERMS = 128
LEAST_TERMS = 16  # of one step of a tensor core


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Conv)
        and on_gpu(target)
        and workload.terms <= MOST_TERMS
        and max(workload.Hi * workload.Wi * workload.Ci, workload.Ho * workload.Wo * workload.Co)
        < MOST_ELEMENTS
    )


def space(workload: Conv, target: Target) -> Space:
    """Tiles that fit registers and shared memory, in a number that fits the SMs."""
    gpu, dtype = target.gpu, workload.dtype
    heights = choices((1, 2, 4, 8, 16), workload.Ho)
    columns = (8, 16, 32) if workload.Wo > 8 else (16,)
    outputs = choices((16, 32, 64), workload.Co, least=16)[-2:]
    words = precisions(dtype, target)
    default = _default(workload, gpu.sms, (heights, columns, outputs))
    finest: Config = {"BLOCK_HO": 1, "BLOCK_WO": 16, "BLOCK_CO": outputs[0]}
    fill = min(gpu.sms, _programs(workload, finest)) // 4

    def pixels(config: Config) -> int:
        return int(config["BLOCK_HO"]) * int(config["BLOCK_WO"])

    def share(config: Config, width: int) -> float:
        """Elements a thread of so many columns of all pixels."""
        return pixels(config) * width / (WARP * int(config["NUM_WARPS"]))

    def tile_bytes(config: Config) -> int:
        """Operands in shared memory; the tile that is stored takes their place."""
        BP, BCO = pixels(config), int(config["BLOCK_CO"])
        return ITEM_BYTES[dtype] * max((BP + BCO) * _terms(workload), BP * BCO)

    return Space(
        knobs=(
            Knob("BLOCK_HO", heights, default["BLOCK_HO"]),
            Knob("BLOCK_WO", columns, default["BLOCK_WO"]),
            Knob("BLOCK_CO", outputs, default["BLOCK_CO"]),
            Knob("PRECISION", words, words[-1]),
            Knob("NUM_WARPS", (1, 2, 4, 8), 4),
        ),
        constraints=(
            Constraint("a tensor core has pixels", lambda c: 16 <= pixels(c) <= 256),
            Constraint(
                "sums and terms fit registers",
                lambda c: share(c, int(c["BLOCK_CO"])) + share(c, _terms(workload)) <= MOST_SUMS,
            ),
            Constraint(
                "warps have work",
                lambda c: share(c, int(c["BLOCK_CO"])) >= 4 or c["NUM_WARPS"] == 1,
            ),
            Constraint(
                "operands fit shared memory",
                lambda c: tile_bytes(c) <= gpu.shared_per_block_bytes,
            ),
            Constraint("SMs have work", lambda c: _programs(workload, c) >= fill),
        ),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _stem(
    x: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    Hi: tl.constexpr,
    Wi: tl.constexpr,
    Ho: tl.constexpr,
    Wo: tl.constexpr,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    K: tl.constexpr,
    stride: tl.constexpr,
    top: tl.constexpr,
    left: tl.constexpr,
    TERMS: tl.constexpr,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_HO: tl.constexpr,
    BLOCK_WO: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_HO: tl.constexpr = triton.cdiv(Ho, BLOCK_HO)
    BLOCKS_WO: tl.constexpr = triton.cdiv(Wo, BLOCK_WO)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    tile = tl.program_id(0) // BLOCKS_CO
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    pixel = tl.arange(0, BLOCK_HO * BLOCK_WO)  # (BLOCK_HO*BLOCK_WO,), as ho and wo
    wo = tile % BLOCKS_WO * BLOCK_WO + pixel % BLOCK_WO
    ho = tile // BLOCKS_WO % BLOCKS_HO * BLOCK_HO + pixel // BLOCK_WO
    n = (tile // (BLOCKS_WO * BLOCKS_HO)).to(tl.int64)

    term = tl.arange(0, TERMS)  # (TERMS,)
    # (TERMS, BLOCK_CO)
    filters = tl.load(wt + term[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :])
    total = tl.load(bias + co)[None, :]  # (1, BLOCK_CO)

    # Of a row of the window the terms follow one another, and so do those of the image.
    ROW: tl.constexpr = triton.cdiv(K * Ci, WIDTH)  # of the window, in loads of WIDTH values
    LINE: tl.constexpr = Wi * Ci // WIDTH  # of the image
    part = tl.arange(0, TERMS // WIDTH)  # (TERMS // WIDTH,)
    kh = part // ROW
    h = (ho * stride - top)[:, None] + kh[None, :]
    column = (wo * (stride * Ci // WIDTH) - left * Ci // WIDTH)[:, None]
    in_row = column + (part % ROW)[None, :]
    at = (ho * stride - top)[:, None] * LINE + column + (kh * LINE + part % ROW)[None, :]
    inside = (h >= 0) & (h < Hi) & (in_row >= 0) & (in_row < LINE) & (part < K * ROW)[None, :]
    image = x + n * (Hi * Wi * Ci)
    if WIDTH == 2:
        pairs = tl.load(
            image.to(tl.pointer_type(tl.int32), bitcast=True) + at, mask=inside, other=0
        )
        first = pairs.to(tl.int16).to(x.dtype.element_ty, bitcast=True)
        second = (pairs >> 16).to(tl.int16).to(x.dtype.element_ty, bitcast=True)
        terms = tl.reshape(tl.join(first, second), (BLOCK_HO * BLOCK_WO, TERMS))
    else:
        terms = tl.load(image + at, mask=inside, other=0.0)  # (BLOCK_HO*BLOCK_WO, TERMS)
    acc = tl.dot(terms, filters, input_precision=PRECISION)
    total = activate(total + acc, ACTIVATION)  # (BLOCK_HO*BLOCK_WO, BLOCK_CO)

    exists = ((ho < Ho) & (wo < Wo))[:, None]
    if Co % BLOCK_CO != 0:
        exists = exists & (co < Co)[None, :]
    at = ((ho * Wo + wo) * Co)[:, None] + co[None, :]
    tl.store(y + n * (Ho * Wo * Co) + at, total.to(y.dtype.element_ty), mask=exists)


def call(workload: Conv, config: Config, target: Target) -> Call:
    """One launch."""
    dtype, terms = workload.dtype, _terms(workload)
    columns = blocks(workload.Co, int(config["BLOCK_CO"])) * int(config["BLOCK_CO"])
    return Call(
        arguments=(
            Tensor(name="x", shape=workload.x_shape, dtype=dtype),
            Tensor(name="wt", shape=(terms, columns), dtype=dtype),
            Tensor(name="bias", shape=(columns,), dtype="float32"),
            Tensor(name="y", shape=workload.y_shape, dtype=dtype),
        ),
        launches=(
            Launch(
                kernel=_stem,
                tensors=("x", "wt", "bias", "y"),
                constants=window(workload)
                | {"Ci": workload.Ci, "Co": workload.Co, "TERMS": terms, "WIDTH": _width(workload)}
                | {"ACTIVATION": workload.activation, "PRECISION": config["PRECISION"]}
                | {name: config[name] for name in TILE},
                programs=_programs(workload, config),
                num_warps=int(config["NUM_WARPS"]),
                num_stages=1,
            ),
        ),
    )


def lower(workload: Conv, config: Config, target: Target) -> Any:
    """The function main(x, wt, bias, y) and its machine code."""
    from kernels.triton.embed import lowered

    return lowered(call(workload, config, target), target)


def pack(workload: Conv, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (K,K,Ci,Co) -> (T,Co) and bias (Co,), with zeros, a window's rows to whole loads."""
    wt, bias = weights
    BLOCK_CO = int(config["BLOCK_CO"])
    rows = wt.reshape(workload.K, workload.K * workload.Ci, workload.Co)
    terms = padded(rows, _width(workload), 1).reshape(-1, workload.Co)
    return padded(terms, _terms(workload), BLOCK_CO), padded(bias, BLOCK_CO)


def _default(workload: Conv, sms: int, choices: tuple[tuple[int, ...], ...]) -> Config:
    tiles = ((8, 16, 64), (4, 16, 64), (4, 8, 32), (2, 8, 32))
    wanted = (dict(zip(TILE, tile, strict=True)) for tile in tiles)
    return filling(wanted, dict(zip(TILE, choices, strict=True)), partial(_programs, workload), sms)


def _width(workload: Conv) -> int:
    """Values of one load: two, which are 4 bytes, where the rows of all windows start at such."""
    starts = (workload.stride, workload.pad[2], workload.Wi)
    even = all(pixels * workload.Ci % 2 == 0 for pixels in starts)
    wider = workload.K * blocks(workload.K * workload.Ci, 2) * 2
    fits = cover(wider) == cover(workload.terms)
    return 2 if workload.dtype == "float16" and even and fits else 1


def _terms(workload: Conv) -> int:
    return max(cover(workload.terms), LEAST_TERMS)


def _programs(workload: Conv, config: Config) -> int:
    BLOCK_HO, BLOCK_WO, BLOCK_CO = (int(config[name]) for name in TILE)
    tiles = workload.N * blocks(workload.Ho, BLOCK_HO) * blocks(workload.Wo, BLOCK_WO)
    return tiles * blocks(workload.Co, BLOCK_CO)
