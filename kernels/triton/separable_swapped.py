"""Depthwise convolution and the pointwise one behind it in one, for few pixels, NHWC, Triton.

Maths   z[n,ho,wo,c] = act(dw_bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                    * dw_wt[kh,kw,c])
        y[n,ho,wo,co] = act(bias[co] + sum_c z[n,ho,wo,c] * wt[co,c])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,C)  dw_wt (K,K,C)  dw_bias (C,)  wt (Co,C)  bias (Co,)  y (N,Ho,Wo,Co); weights
        padded to whole blocks
Types   storage workload.dtype, biases and accumulation float32; z is rounded to workload.dtype
        between the two; PRECISION says how float32 is multiplied, see tile.precisions.
Tiling  One program computes BLOCK_P patches of ROWS x COLUMNS pixels x BLOCK_CO channels. For
        BLOCK_C channels at a time it makes z in registers, a thread some channels of whole patches,
        so that what several pixels see is loaded, and made float32, once. Tensor cores multiply the
        weights by it, operands swapped: output channels are rows, of which they take 64 at a time,
        and pixels are columns, of which 8 will do. z never reaches memory, and is made anew for
        each BLOCK_CO channels. The patches are BLOCK_WO columns of some rows of one image, or, with
        BLOCK_WO = 0, follow on each other across rows and images, which leaves none idle where
        images are small. Where one step takes all channels, and windows are 3x3, all loads of a
        program are under way at once, those of weights even before the launch ahead has ended, if
        its blocks leave room: with RESIDENT = 2 a block takes no more than half an SM's registers.
Limits  no dilation; windows up to 7x7, because taps are unrolled; less than 2**30 elements an image
        and pixels.
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
from kernels.triton.separable import PATCH, TILE, finest, programs, tiles
from kernels.triton.separable import supports as supports
from kernels.triton.tile import (
    WARP,
    await_previous,
    choices,
    filling,
    padded,
    precisions,
    rounded,
    window,
)
from kernels.workload import ITEM_BYTES, Separable
from targets.target import Target

RESERVED = 1024  # bytes of shared memory, with each block


def space(workload: Separable, target: Target) -> Space:
    """Tiles that fit registers and shared memory, in a number that fits the SMs."""
    gpu, dtype = target.gpu, workload.dtype
    pixels = workload.N * workload.Ho * workload.Wo
    patches = choices((2, 4, 8, 16, 32, 64), pixels)
    outputs = choices((16, 32, 64, 128), workload.Co, least=16)[-3:]
    deep = (16, 32, 64, 128, 256, 512, 1024)[: 7 if dtype == "float16" else 5]
    channels = choices(deep, workload.C, least=16)[-3:]
    words = precisions(dtype, target)[-1:]  # on tensor cores, without which nothing is gained
    default = _default(workload, gpu.sms, (patches, outputs, channels))
    fill = min(gpu.sms, finest(workload, patches[0], outputs[0])) // 4

    def threads(config: Config) -> int:
        return WARP * int(config["NUM_WARPS"])

    def columns(config: Config) -> int:
        """Of the product: pixels."""
        return int(config["BLOCK_P"]) * _pixels(config)

    def sums(config: Config) -> float:
        """That a thread has of y."""
        return columns(config) * int(config["BLOCK_CO"]) / threads(config)

    def between(config: Config) -> float:
        """That a thread has of z at each place of a patch."""
        return int(config["BLOCK_P"]) * int(config["BLOCK_C"]) / threads(config)

    def registers(config: Config) -> float:
        """For sums, z, and what its first loads bring: of a window, and of as many taps."""
        rows, columns = (
            (int(config[axis]) - 1) * workload.stride + min(workload.K, 3) for axis in PATCH
        )
        loaded = (rows * columns + min(workload.K, 3) ** 2) * ITEM_BYTES[dtype] / 4
        return sums(config) + between(config) * (_pixels(config) + loaded)

    def allowed(config: Config) -> float:
        """What a thread can have, and an eighth: the last loads can wait for the first sums."""
        share = gpu.registers_per_sm / (threads(config) * int(config["RESIDENT"]))
        return 9 / 8 * min(gpu.registers_per_thread, share)

    def tile_bytes(config: Config) -> int:
        """The operands of one step in shared memory; the tile that is stored takes their place."""
        BCO, BC = int(config["BLOCK_CO"]), int(config["BLOCK_C"])
        steps = (columns(config) + BCO) * BC
        return ITEM_BYTES[dtype] * max(steps, columns(config) * BCO)

    def columns_fit(config: Config) -> bool:
        """Whole rows of the tile, and no more idle pixels in it than a quarter."""
        if config["BLOCK_WO"] == 0:
            return True
        whole = tiles(workload, config) * columns(config)
        rows = int(config["BLOCK_P"]) // int(config["BLOCK_WO"])
        return rows >= 2 and 4 * pixels >= 3 * whole

    return Space(
        knobs=(
            Knob("BLOCK_P", patches, default["BLOCK_P"]),
            Knob("BLOCK_WO", (0, 8), default["BLOCK_WO"]),
            Knob("BLOCK_CO", outputs, default["BLOCK_CO"]),
            Knob("BLOCK_C", channels, default["BLOCK_C"]),
            Knob("ROWS", (1, 2), default["ROWS"]),
            Knob("COLUMNS", (1, 2), default["COLUMNS"]),
            Knob("RESIDENT", (1, 2), default["RESIDENT"]),
            Knob("PRECISION", words, words[-1]),
            Knob("NUM_WARPS", (4, 8, 16), default["NUM_WARPS"]),
        ),
        constraints=(
            Constraint("a product has columns", lambda c: 8 <= columns(c) <= 128),
            Constraint(
                "patches are no higher than wide", lambda c: int(c["ROWS"]) <= int(c["COLUMNS"])
            ),
            Constraint("sums, pixels and taps fit registers", lambda c: registers(c) <= allowed(c)),
            Constraint("warps have work", lambda c: c["NUM_WARPS"] == 4 or between(c) >= 2),
            Constraint(
                "operands fit shared memory",
                lambda c: (
                    int(c["RESIDENT"]) * (tile_bytes(c) + RESERVED) <= gpu.shared_per_sm_bytes
                ),
            ),
            Constraint("tiles hold few idle pixels", columns_fit),
            Constraint("SMs have work", lambda c: programs(workload, c) >= fill),
            Constraint(
                "who shares an SM with the next launch has one program there",
                lambda c: c["RESIDENT"] == 1 or programs(workload, c) <= gpu.sms,
            ),
            Constraint(
                "z is made anew only where programs are few",
                lambda c: (
                    int(c["BLOCK_CO"]) >= min(workload.Co, 128)
                    or programs(workload, c) <= 8 * gpu.sms
                ),
            ),
        ),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _patches(
    tile: tl.tensor,
    p: tl.tensor,
    Ho: tl.constexpr,
    Wo: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_WO: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tuple:
    """Where the patches `p` of a tile begin: first image of the tile, and n from there, ho, wo."""
    PATCHES_H: tl.constexpr = triton.cdiv(Ho, ROWS)  # of an image
    PATCHES_W: tl.constexpr = triton.cdiv(Wo, COLUMNS)
    if BLOCK_WO == 0:
        first = tile * BLOCK_P // (PATCHES_H * PATCHES_W)
        p += tile * BLOCK_P - first * (PATCHES_H * PATCHES_W)
        n = p // (PATCHES_H * PATCHES_W)
        ho = p // PATCHES_W % PATCHES_H * ROWS
        wo = p % PATCHES_W * COLUMNS
    else:
        BLOCK_HO: tl.constexpr = BLOCK_P // BLOCK_WO
        BLOCKS_HO: tl.constexpr = triton.cdiv(PATCHES_H, BLOCK_HO)
        BLOCKS_WO: tl.constexpr = triton.cdiv(PATCHES_W, BLOCK_WO)
        first = tile // (BLOCKS_HO * BLOCKS_WO)
        n = p * 0
        ho = (tile // BLOCKS_WO % BLOCKS_HO * BLOCK_HO + p // BLOCK_WO) * ROWS
        wo = (tile % BLOCKS_WO * BLOCK_WO + p % BLOCK_WO) * COLUMNS
    return first, n, ho, wo


@triton.jit  # type: ignore[untyped-decorator]
def _separable_swapped(
    x: tl.tensor,
    dw_wt: tl.tensor,
    dw_bias: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    N: tl.constexpr,
    Hi: tl.constexpr,
    Wi: tl.constexpr,
    Ho: tl.constexpr,
    Wo: tl.constexpr,
    C: tl.constexpr,
    Co: tl.constexpr,
    K: tl.constexpr,
    stride: tl.constexpr,
    top: tl.constexpr,
    left: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_WO: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    BLOCKS_C: tl.constexpr = triton.cdiv(C, BLOCK_C)
    PIXELS: tl.constexpr = ROWS * COLUMNS
    KEPT: tl.constexpr = K <= 3  # a wider window's taps are too many registers
    AHEAD: tl.constexpr = BLOCKS_C == 1 and KEPT
    tile = tl.program_id(0) // BLOCKS_CO
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    p = tl.arange(0, BLOCK_P)  # (BLOCK_P,), patches
    first, n, ho, wo = _patches(tile, p, Ho, Wo, BLOCK_P, BLOCK_WO, ROWS, COLUMNS)
    exists = (first + n < N) & (ho < Ho) & (wo < Wo)
    h = ho * stride - top
    w = wo * stride - left
    corner = x + first.to(tl.int64) * (Hi * Wi * C) + ((n * Hi + h) * Wi + w) * C  # (BLOCK_P,)

    if not AHEAD:
        await_previous(DEPENDENT)
    acc = tl.zeros((BLOCK_CO, PIXELS * BLOCK_P), tl.float32) + tl.load(bias + co)[:, None]
    for block in range(BLOCKS_C):
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
        filters = tl.load(wt + co[:, None] * (BLOCKS_C * BLOCK_C) + c[None, :])
        # For each patch, though all want the same, which is read once: a vector would have other
        # places in threads than pixels have, and change them at barriers.
        each = c[None, :] + tl.zeros((BLOCK_P, 1), tl.int32)
        shift = tl.load(dw_bias + each)
        taps: tl.tuple = ()
        for tap in tl.static_range(K * K if KEPT else 0):
            taps = taps + (tl.load(dw_wt + tap * (BLOCKS_C * BLOCK_C) + each),)
        if AHEAD:
            await_previous(DEPENDENT)

        place = corner[:, None] + c[None, :]
        patch: tl.tuple = ()  # of z, each (BLOCK_P, BLOCK_C)
        for output in tl.static_range(PIXELS):
            value = shift
            for tap in tl.static_range(K * K):
                kh = output // COLUMNS * stride + tap // K
                kw = output % COLUMNS * stride + tap % K
                inside = exists & (h >= -kh) & (h < Hi - kh) & (w >= -kw) & (w < Wi - kw)
                inside = inside[:, None]
                if C % BLOCK_C != 0:
                    inside = inside & (c < C)[None, :]
                # What several outputs of a patch see, the compiler loads once.
                seen = tl.load(place + (kh * Wi + kw) * C, mask=inside, other=0.0)
                weight = taps[tap] if KEPT else tl.load(dw_wt + tap * (BLOCKS_C * BLOCK_C) + each)
                value += seen.to(tl.float32) * weight.to(tl.float32)
            patch = patch + (rounded(value, x.dtype.element_ty, ACTIVATION),)
        # Side by side in a thread, no matter where they go: pixels of a patch follow on each other.
        if PIXELS == 1:
            z = patch[0]
        elif PIXELS == 2:
            z = tl.permute(tl.join(patch[0], patch[1]), (0, 2, 1))
        else:
            z = tl.join(tl.join(patch[0], patch[1]), tl.join(patch[2], patch[3]))
            z = tl.permute(z, (0, 3, 2, 1))
        z = tl.reshape(z, (PIXELS * BLOCK_P, BLOCK_C))
        acc = tl.dot(filters, tl.trans(z), acc, input_precision=PRECISION)

    pixel = tl.arange(0, PIXELS * BLOCK_P)  # (PIXELS*BLOCK_P,)
    first, n, ho, wo = _patches(tile, pixel // PIXELS, Ho, Wo, BLOCK_P, BLOCK_WO, ROWS, COLUMNS)
    ho += pixel % PIXELS // COLUMNS
    wo += pixel % COLUMNS
    inside = ((first + n < N) & (ho < Ho) & (wo < Wo))[:, None]
    if Co % BLOCK_CO != 0:
        inside = inside & (co < Co)[None, :]
    place = y + first.to(tl.int64) * (Ho * Wo * Co) + ((n * Ho + ho) * Wo + wo) * Co
    value = rounded(tl.trans(acc), y.dtype.element_ty, ACTIVATION)  # (PIXELS*BLOCK_P, BLOCK_CO)
    tl.store(place[:, None] + co[None, :], value, mask=inside)


def call(workload: Separable, config: Config, target: Target) -> Call:
    """One launch."""
    dtype = workload.dtype
    inputs = blocks(workload.C, int(config["BLOCK_C"])) * int(config["BLOCK_C"])
    outputs = blocks(workload.Co, int(config["BLOCK_CO"])) * int(config["BLOCK_CO"])
    return Call(
        arguments=(
            Tensor(name="x", shape=workload.x_shape, dtype=dtype),
            Tensor(name="dw_wt", shape=(workload.K, workload.K, inputs), dtype=dtype),
            Tensor(name="dw_bias", shape=(inputs,), dtype="float32"),
            Tensor(name="wt", shape=(outputs, inputs), dtype=dtype),
            Tensor(name="bias", shape=(outputs,), dtype="float32"),
            Tensor(name="y", shape=workload.y_shape, dtype=dtype),
        ),
        launches=(
            Launch(
                kernel=_separable_swapped,
                tensors=("x", "dw_wt", "dw_bias", "wt", "bias", "y"),
                constants=window(workload)
                | {"N": workload.N, "C": workload.C, "Co": workload.Co}
                | {"ACTIVATION": workload.activation, "PRECISION": config["PRECISION"]}
                | {name: config[name] for name in (*TILE, "BLOCK_WO", *PATCH)},
                programs=programs(workload, config),
                num_warps=int(config["NUM_WARPS"]),
                num_stages=1,
                resident=int(config["RESIDENT"]),
            ),
        ),
    )


def lower(workload: Separable, config: Config, target: Target) -> Any:
    """The function main(x, dw_wt, dw_bias, wt, bias, y) and its machine code."""
    from kernels.triton.embed import lowered

    return lowered(call(workload, config, target), target)


def pack(workload: Separable, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """dw_wt (K,K,C), dw_bias (C,), wt (C,Co) -> (Co,C), bias (Co,), padded with zeros to whole
    blocks.
    """
    dw_wt, dw_bias, wt, bias = weights
    BLOCK_C, BLOCK_CO = int(config["BLOCK_C"]), int(config["BLOCK_CO"])
    return (
        padded(dw_wt, BLOCK_C),
        padded(dw_bias, BLOCK_C),
        padded(wt.T, BLOCK_CO, BLOCK_C),
        padded(bias, BLOCK_CO),
    )


def _default(workload: Separable, sms: int, choices: tuple[tuple[int, ...], ...]) -> Config:
    half = ((32, 64, 64, 2, 4), (16, 64, 64, 2, 4), (4, 128, 256, 2, 8), (2, 64, 512, 2, 8))
    full = ((8, 64, 32, 2, 8), (4, 64, 64, 2, 8), (4, 32, 64, 1, 4))
    wanted = (
        dict(zip(TILE, tile, strict=True))
        | {"ROWS": side, "COLUMNS": side, "BLOCK_WO": 0, "RESIDENT": 1, "NUM_WARPS": warps}
        for *tile, side, warps in (half if workload.dtype == "float16" else full)
    )
    fitting = dict(zip(TILE, choices, strict=True))
    return filling(wanted, fitting, partial(programs, workload), 3 * sms // 4)


def _pixels(config: Config) -> int:
    """Of a patch."""
    return int(config["ROWS"]) * int(config["COLUMNS"])
