"""Convolution over few input channels, the network's stem, NHWC, Triton.

Maths   y[n,ho,wo,co] = act(bias[co] + sum_{kh,kw,ci} x[n, ho*stride+kh-top, wo*stride+kw-left, ci]
                                                      * wt[kh,kw,ci,co])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,Ci)  wt (T,Co)  bias (Co,)  y (N,Ho,Wo,Co); T, the K*K*Ci terms, is padded to a
        power of two, and Co to whole blocks
Types   storage workload.dtype, bias and accumulation float32; PRECISION says how float32 is
        multiplied, see tile.precisions.
Tiling  One program computes BLOCK_HO rows x BLOCK_WO columns x BLOCK_CO channels of one image: the
        terms of its pixels, gathered one by one since Ci is too few for wide loads, times the
        weights, in one product of matrices.
Limits  at most 128 terms, because they are one tile; less than 2**30 elements an image.
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

    term = tl.arange(0, TERMS)  # (TERMS,), as kh, kw, ci, in the order of the weights
    h = (ho * stride - top)[:, None] + (term // (K * Ci))[None, :]
    w = (wo * stride - left)[:, None] + (term // Ci % K)[None, :]
    at = (h * Wi + w) * Ci + (term % Ci)[None, :]
    inside = (h >= 0) & (h < Hi) & (w >= 0) & (w < Wi) & (term < K * K * Ci)[None, :]
    # (BLOCK_HO*BLOCK_WO, TERMS)
    terms = tl.load(x + n * (Hi * Wi * Ci) + at, mask=inside, other=0.0)
    filters = tl.load(
        wt + term[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :]
    )  # (TERMS, BLOCK_CO)
    acc = tl.dot(terms, filters, input_precision=PRECISION)
    acc = activate(acc + tl.load(bias + co)[None, :], ACTIVATION)

    exists = ((ho < Ho) & (wo < Wo))[:, None]
    if Co % BLOCK_CO != 0:
        exists = exists & (co < Co)[None, :]
    at = ((ho * Wo + wo) * Co)[:, None] + co[None, :]
    tl.store(y + n * (Ho * Wo * Co) + at, acc.to(y.dtype.element_ty), mask=exists)


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
                | {"Ci": workload.Ci, "Co": workload.Co, "TERMS": terms}
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
    """wt (K,K,Ci,Co) -> (T,Co) and bias (Co,), padded with zeros."""
    wt, bias = weights
    BLOCK_CO = int(config["BLOCK_CO"])
    terms = wt.reshape(workload.terms, workload.Co)
    return padded(terms, _terms(workload), BLOCK_CO), padded(bias, BLOCK_CO)


def _default(workload: Conv, sms: int, choices: tuple[tuple[int, ...], ...]) -> Config:
    tiles = ((8, 16, 64), (4, 16, 64), (4, 8, 32), (2, 8, 32))
    wanted = (dict(zip(TILE, tile, strict=True)) for tile in tiles)
    return filling(wanted, dict(zip(TILE, choices, strict=True)), partial(_programs, workload), sms)


def _terms(workload: Conv) -> int:
    return max(cover(workload.terms), LEAST_TERMS)


def _programs(workload: Conv, config: Config) -> int:
    BLOCK_HO, BLOCK_WO, BLOCK_CO = (int(config[name]) for name in TILE)
    tiles = workload.N * blocks(workload.Ho, BLOCK_HO) * blocks(workload.Wo, BLOCK_WO)
    return tiles * blocks(workload.Co, BLOCK_CO)
