"""Depthwise convolution, NHWC, Triton.

Maths   y[n,ho,wo,c] = act(bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                 * wt[kh,kw,c])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,C)  wt (K,K,C)  bias (C,)  y (N,Ho,Wo,C); wt and bias padded to whole blocks
Types   storage workload.dtype, bias and accumulation float32.
Tiling  One program computes BLOCK_HO * ROWS rows x BLOCK_WO * COLUMNS columns x BLOCK_C channels
        of one image. A thread has patches of ROWS x COLUMNS outputs: what several of them see is
        loaded once and made float32 once, which takes as long as multiplying it. Its loads are of
        BLOCK_HO * BLOCK_WO * BLOCK_C / threads channels, at most 16 bytes: the tile and the warps
        decide how wide.
Limits  one filter a channel, no dilation; windows up to 7x7, because taps are unrolled; less than
        2**30 elements an image.
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
    MOST_WINDOW,
    WARP,
    WIDEST_BYTES,
    activate,
    await_previous,
    choices,
    cover,
    filling,
    on_gpu,
    padded,
    window,
)
from kernels.workload import ITEM_BYTES, Depthwise, Workload
from targets.target import Target

TILE = ("BLOCK_HO", "BLOCK_WO", "BLOCK_C", "ROWS", "COLUMNS")
NUM_WARPS = (1, 2, 4, 8)


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Depthwise)
        and on_gpu(target)
        and workload.K <= MOST_WINDOW
        and workload.Hi * workload.Wi * workload.C < MOST_ELEMENTS
    )


def space(workload: Depthwise, target: Target) -> Space:
    """Tiles of which a thread has a few elements, in enough programs to keep the SMs busy."""
    sms = target.gpu.sms
    channels = choices((16, 32, 64, 128), workload.C, least=16)[-3:]
    columns = choices((1, 2, 4, 8, 16), workload.Wo)
    heights = choices((1, 2, 4), workload.Ho)
    rows = choices((1, 2, 4), workload.Ho)
    beside = choices((1, 2), workload.Wo)
    finest: Config = dict.fromkeys(TILE, 1)
    finest["BLOCK_C"] = channels[0]
    fill = min(sms, _programs(workload, finest)) // 4
    default = _default(workload, sms, (heights, columns, channels, rows, beside))
    # Elements of a load; an image of a few pixels has not so many for every thread of a warp.
    wide = min(WIDEST_BYTES / ITEM_BYTES[workload.dtype], heights[-1] * columns[-1] / 2)

    def elements(config: Config) -> float:
        """That a thread has of one row and column of its patches."""
        pixels = int(config["BLOCK_HO"]) * int(config["BLOCK_WO"])
        return pixels * int(config["BLOCK_C"]) / (WARP * int(config["NUM_WARPS"]))

    def registers(config: Config) -> float:
        """Sums, and the taps of the channels that a thread loads at once."""
        loaded = min(elements(config), WIDEST_BYTES / ITEM_BYTES[workload.dtype])
        sums = elements(config) * int(config["ROWS"]) * int(config["COLUMNS"])
        return sums + loaded * min(workload.K**2, 9)

    def worthwhile(config: Config) -> bool:
        """Narrow loads only where wide ones would leave SMs idle."""
        if elements(config) >= wide:
            return True
        few = _programs(workload, config) < 8 * sms
        return few and (elements(config) >= 2 or config["NUM_WARPS"] == NUM_WARPS[0])

    return Space(
        knobs=(
            Knob("BLOCK_HO", heights, default["BLOCK_HO"]),
            Knob("BLOCK_WO", columns, default["BLOCK_WO"]),
            Knob("BLOCK_C", channels, default["BLOCK_C"]),
            Knob("ROWS", rows, default["ROWS"]),
            Knob("COLUMNS", beside, default["COLUMNS"]),
            Knob("ORDER", ("channels", "pixels"), "channels"),
            Knob("NUM_WARPS", NUM_WARPS, default["NUM_WARPS"]),
        ),
        constraints=(
            Constraint("a thread has few elements", lambda c: elements(c) <= 16),
            Constraint("loads are wide or programs few", worthwhile),
            Constraint("sums and taps fit registers", lambda c: registers(c) <= MOST_SUMS),
            # Else Triton loads the taps in another layout than the pixels', and moves them through
            # shared memory, each one behind a barrier of its own.
            Constraint(
                "taps load as pixels do", lambda c: int(c["BLOCK_C"]) < WARP * int(c["NUM_WARPS"])
            ),
            Constraint("a quarter of the SMs has work", lambda c: _programs(workload, c) >= fill),
            Constraint(
                "rows overrun by less than a half",
                lambda c: int(c["BLOCK_HO"]) * int(c["ROWS"]) < 2 * cover(workload.Ho),
            ),
            Constraint(
                "columns overrun by less than a half",
                lambda c: int(c["BLOCK_WO"]) * int(c["COLUMNS"]) < 2 * cover(workload.Wo),
            ),
            Constraint(
                "order matters between blocks of channels",
                lambda c: c["ORDER"] == "channels" or int(c["BLOCK_C"]) < workload.C,
            ),
        ),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _depthwise(
    x: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    Hi: tl.constexpr,
    Wi: tl.constexpr,
    Ho: tl.constexpr,
    Wo: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    stride: tl.constexpr,
    top: tl.constexpr,
    left: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_HO: tl.constexpr,
    BLOCK_WO: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ORDER: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_HO: tl.constexpr = triton.cdiv(Ho, BLOCK_HO * ROWS)
    BLOCKS_WO: tl.constexpr = triton.cdiv(Wo, BLOCK_WO * COLUMNS)
    BLOCKS_C: tl.constexpr = triton.cdiv(C, BLOCK_C)
    block = tl.program_id(0)
    if ORDER == "channels":
        block_c = block % BLOCKS_C
        tile = block // BLOCKS_C
    else:
        tile = block % (tl.num_programs(0) // BLOCKS_C)
        block_c = block // (tl.num_programs(0) // BLOCKS_C)

    pixel = tl.arange(0, BLOCK_HO * BLOCK_WO)  # (BLOCK_HO*BLOCK_WO,), as all of these
    wo = (tile % BLOCKS_WO * BLOCK_WO + pixel % BLOCK_WO) * COLUMNS
    ho = (tile // BLOCKS_WO % BLOCKS_HO * BLOCK_HO + pixel // BLOCK_WO) * ROWS
    n = (tile // (BLOCKS_WO * BLOCKS_HO)).to(tl.int64)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
    inside_c = (c < C)[None, :]
    h = ho * stride - top
    w = wo * stride - left
    # Of each window's first tap, (BLOCK_HO*BLOCK_WO, BLOCK_C): all that is added to it are
    # constants, which are part of the loads.
    corner = x + n * (Hi * Wi * C) + ((h * Wi + w) * C)[:, None] + c[None, :]

    # Every load stands before the first store: with none between them the compiler takes those of
    # what several outputs see for one.
    shift = tl.load(bias + c)[None, :]
    patch: tl.tuple = ()
    for output in tl.static_range(ROWS * COLUMNS):
        acc = tl.zeros((BLOCK_HO * BLOCK_WO, BLOCK_C), tl.float32) + shift
        for tap in tl.static_range(K * K):
            below = output // COLUMNS * stride + tap // K
            right = output % COLUMNS * stride + tap % K
            inside = (h >= -below) & (h < Hi - below) & (w >= -right) & (w < Wi - right)
            value = tl.load(
                corner + (below * Wi + right) * C, mask=inside[:, None] & inside_c, other=0.0
            )  # (BLOCK_HO*BLOCK_WO, BLOCK_C)
            weight = tl.load(wt + tap * (BLOCKS_C * BLOCK_C) + c)  # (BLOCK_C,)
            acc += value.to(tl.float32) * weight.to(tl.float32)[None, :]
        patch = patch + (activate(acc, ACTIVATION),)

    place = y + n * (Ho * Wo * C) + ((ho * Wo + wo) * C)[:, None] + c[None, :]
    for output in tl.static_range(ROWS * COLUMNS):
        row = output // COLUMNS
        column = output % COLUMNS
        inside = ((ho < Ho - row) & (wo < Wo - column))[:, None] & inside_c
        at = place + (row * Wo + column) * C
        tl.store(at, patch[output].to(y.dtype.element_ty), mask=inside)


def call(workload: Depthwise, config: Config, target: Target) -> Call:
    """One launch."""
    channels = blocks(workload.C, int(config["BLOCK_C"])) * int(config["BLOCK_C"])
    dtype = workload.dtype
    return Call(
        arguments=(
            Tensor(name="x", shape=workload.x_shape, dtype=dtype),
            Tensor(name="wt", shape=(workload.K, workload.K, channels), dtype=dtype),
            Tensor(name="bias", shape=(channels,), dtype="float32"),
            Tensor(name="y", shape=workload.y_shape, dtype=dtype),
        ),
        launches=(
            Launch(
                kernel=_depthwise,
                tensors=("x", "wt", "bias", "y"),
                constants=window(workload)
                | {"C": workload.C, "ACTIVATION": workload.activation}
                | {name: config[name] for name in (*TILE, "ORDER")},
                programs=_programs(workload, config),
                num_warps=int(config["NUM_WARPS"]),
                num_stages=1,
            ),
        ),
    )


def lower(workload: Depthwise, config: Config, target: Target) -> Any:
    """The function main(x, wt, bias, y) and its machine code."""
    from kernels.triton.embed import lowered

    return lowered(call(workload, config, target), target)


def pack(workload: Depthwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (K,K,C) and bias (C,), channels padded with zeros to whole blocks."""
    return tuple(padded(array, int(config["BLOCK_C"])) for array in weights)


def _default(workload: Depthwise, sms: int, choices: tuple[tuple[int, ...], ...]) -> Config:
    tiles = ((4, 4, 64, 2, 2, 4), (2, 4, 64, 2, 2, 4), (2, 8, 64, 1, 1, 4), (2, 8, 32, 1, 1, 2))
    wanted = (dict(zip((*TILE, "NUM_WARPS"), tile, strict=True)) for tile in tiles)
    return filling(wanted, dict(zip(TILE, choices, strict=True)), partial(_programs, workload), sms)


def _programs(workload: Depthwise, config: Config) -> int:
    rows = int(config["BLOCK_HO"]) * int(config["ROWS"])
    columns = int(config["BLOCK_WO"]) * int(config["COLUMNS"])
    tiles = workload.N * blocks(workload.Ho, rows) * blocks(workload.Wo, columns)
    return tiles * blocks(workload.C, int(config["BLOCK_C"]))
