"""Depthwise convolution and the pointwise one behind it in one kernel, NHWC, Triton.

Maths   z[n,ho,wo,c] = act(dw_bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                    * dw_wt[kh,kw,c])
        y[n,ho,wo,co] = act(bias[co] + sum_c z[n,ho,wo,c] * wt[c,co])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,C)  dw_wt (K,K,C)  dw_bias (C,)  wt (C,Co)  bias (Co,)  y (N,Ho,Wo,Co); weights
        padded to whole blocks
Types   storage workload.dtype, biases and accumulation float32; z is rounded to workload.dtype
        between the two; PRECISION says how float32 is multiplied, see tile.precisions.
Tiling  One program computes BLOCK_P patches of ROWS x COLUMNS pixels x BLOCK_CO channels. For
        BLOCK_C channels at a time it makes z in registers and multiplies it by their weights on
        tensor cores, one product for each place of a patch: z never reaches memory, and is made
        anew for each BLOCK_CO channels. What several pixels of a patch see is loaded, and made
        float32, once. WINDOW says whether one row of taps or the whole window is loaded at once, or
        ahead, while the step before is computed: the whole takes registers and waits once a step,
        ahead takes twice as many and waits once in all. The patches are BLOCK_WO columns of some
        rows of one image, or, with BLOCK_WO = 0, follow on each other across rows and images, which
        leaves none idle where images are small.
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
from kernels.space import Config, Constraint, Knob, Space, Value, blocks
from kernels.triton.call import Call, Launch, Tensor
from kernels.triton.tile import (
    MOST_ELEMENTS,
    MOST_SUMS,
    MOST_WINDOW,
    WARP,
    activate,
    await_previous,
    choices,
    filling,
    on_gpu,
    padded,
    precisions,
    window,
)
from kernels.workload import ITEM_BYTES, Separable, Workload
from targets.target import Target

TILE = ("BLOCK_P", "BLOCK_CO", "BLOCK_C")
PATCH = ("ROWS", "COLUMNS")


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Separable)
        and on_gpu(target)
        and workload.K <= MOST_WINDOW
        and max(workload.Hi * workload.Wi * workload.C, workload.Ho * workload.Wo * workload.Co)
        < MOST_ELEMENTS
        and max(workload.N * workload.Ho * workload.Wo, workload.C * workload.Co) < MOST_ELEMENTS
    )


def space(workload: Separable, target: Target) -> Space:
    """Tiles that fit registers and shared memory, in a number that fits the SMs."""
    gpu, dtype = target.gpu, workload.dtype
    pixels = choices((16, 32, 64, 128), workload.N * workload.Ho * workload.Wo, least=16)
    outputs = choices((16, 32, 64, 128, 256), workload.Co, least=16)[-4:]
    channels = choices((16, 32, 64, 128), workload.C, least=16)[-3:]
    words = precisions(dtype, target)
    default = _default(workload, gpu.sms, (pixels, outputs, channels))
    fill = min(gpu.sms, finest(workload, pixels[0], outputs[0])) // 4

    def threads(config: Config) -> int:
        return WARP * int(config["NUM_WARPS"])

    def patch(config: Config) -> int:
        return int(config["ROWS"]) * int(config["COLUMNS"])

    def sums(config: Config) -> float:
        """That a thread has of y."""
        pixels = int(config["BLOCK_P"]) * patch(config)
        return pixels * int(config["BLOCK_CO"]) / threads(config)

    def between(config: Config) -> float:
        """That a thread has of z at each place of a patch."""
        return int(config["BLOCK_P"]) * int(config["BLOCK_C"]) / threads(config)

    def loaded(config: Config) -> float:
        """Registers for z and for as many taps and pixels as are under way at once."""
        rows = {"rows": 1, "whole": workload.K, "ahead": 2 * workload.K}[str(config["WINDOW"])]
        taps = workload.K * rows * ITEM_BYTES[dtype] / 4
        return between(config) * (patch(config) + taps)

    def tile_bytes(config: Config) -> int:
        """The operands of one step in shared memory; the tile that is stored takes their place."""
        BP, BCO, BC = (int(config[name]) for name in TILE)
        return ITEM_BYTES[dtype] * max((BP + BCO) * BC, BP * BCO)

    def columns_fit(config: Config) -> bool:
        """Whole rows of the tile, and no more idle pixels in it than a quarter."""
        if config["BLOCK_WO"] == 0:
            return True
        whole = tiles(workload, config) * int(config["BLOCK_P"]) * patch(config)
        rows = int(config["BLOCK_P"]) // int(config["BLOCK_WO"])
        used = workload.N * workload.Ho * workload.Wo
        return rows >= 2 and 4 * used >= 3 * whole

    return Space(
        knobs=(
            Knob("BLOCK_P", pixels, default["BLOCK_P"]),
            Knob("BLOCK_WO", (0, 8, 16), default["BLOCK_WO"]),
            Knob("BLOCK_CO", outputs, default["BLOCK_CO"]),
            Knob("BLOCK_C", channels, default["BLOCK_C"]),
            Knob("ROWS", (1, 2), default["ROWS"]),
            Knob("COLUMNS", (1, 2), default["COLUMNS"]),
            Knob("WINDOW", ("rows", "whole", "ahead"), default["WINDOW"]),
            Knob("PRECISION", words, words[-1]),
            Knob("NUM_WARPS", (4, 8), default["NUM_WARPS"]),
        ),
        constraints=(
            Constraint(
                "sums, pixels and taps fit registers",
                lambda c: sums(c) + loaded(c) <= 3 * MOST_SUMS // 2,
            ),
            Constraint(
                "warps have work",
                lambda c: c["NUM_WARPS"] == 4 or (sums(c) >= 4 and between(c) >= 4),
            ),
            Constraint(
                "operands fit shared memory",
                lambda c: tile_bytes(c) <= gpu.shared_per_block_bytes,
            ),
            Constraint("taps load as pixels do", lambda c: int(c["BLOCK_C"]) < threads(c)),
            Constraint(
                "who looks ahead has steps",
                lambda c: c["WINDOW"] != "ahead" or int(c["BLOCK_C"]) < workload.C,
            ),
            Constraint(
                "a patch sees the whole window", lambda c: patch(c) == 1 or c["WINDOW"] == "whole"
            ),
            Constraint("tiles hold few idle pixels", columns_fit),
            Constraint("SMs have work", lambda c: programs(workload, c) >= fill),
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
def _seen(
    corner: tl.tensor,
    h: tl.tensor,
    w: tl.tensor,
    c: tl.tensor,
    exists: tl.tensor,
    kh: tl.tensor,
    kw: tl.tensor,
    Hi: tl.constexpr,
    Wi: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> tl.tensor:
    """What the tap (kh, kw) sees of x, (BLOCK_P, BLOCK_C), of windows that begin at h and w.

    corner  where x has their first taps, (BLOCK_P,): what is added to it is the same for all
            threads, and where kh is a constant, part of the load
    """
    inside = (exists & (h >= -kh) & (h < Hi - kh) & (w >= -kw) & (w < Wi - kw))[:, None]
    if C % BLOCK_C != 0:
        inside = inside & (c < C)[None, :]
    at = corner[:, None] + c[None, :] + (kh * Wi + kw) * C
    return tl.load(at, mask=inside, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _separable(
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
    WINDOW: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    BLOCKS_C: tl.constexpr = triton.cdiv(C, BLOCK_C)
    PATCHES_H: tl.constexpr = triton.cdiv(Ho, ROWS)  # of an image
    PATCHES_W: tl.constexpr = triton.cdiv(Wo, COLUMNS)
    tile = tl.program_id(0) // BLOCKS_CO
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    p = tl.arange(0, BLOCK_P)  # (BLOCK_P,), patches, as n, ho, wo; n counts from the first image
    if BLOCK_WO == 0:
        first = tile * BLOCK_P // (PATCHES_H * PATCHES_W)
        p += tile * BLOCK_P - first * (PATCHES_H * PATCHES_W)
        n = p // (PATCHES_H * PATCHES_W)
        ho = p // PATCHES_W % PATCHES_H * ROWS
        wo = p % PATCHES_W * COLUMNS
        exists = first + n < N
    else:
        BLOCK_HO: tl.constexpr = BLOCK_P // BLOCK_WO
        BLOCKS_HO: tl.constexpr = triton.cdiv(PATCHES_H, BLOCK_HO)
        BLOCKS_WO: tl.constexpr = triton.cdiv(PATCHES_W, BLOCK_WO)
        first = tile // (BLOCKS_HO * BLOCKS_WO)
        n = tl.zeros((BLOCK_P,), tl.int32)
        ho = (tile // BLOCKS_WO % BLOCKS_HO * BLOCK_HO + p // BLOCK_WO) * ROWS
        wo = (tile % BLOCKS_WO * BLOCK_WO + p % BLOCK_WO) * COLUMNS
        exists = (ho < Ho) & (wo < Wo)

    h = ho * stride - top
    w = wo * stride - left
    corner = x + first.to(tl.int64) * (Hi * Wi * C) + ((n * Hi + h) * Wi + w) * C  # (BLOCK_P,)
    sums: tl.tuple = ()  # a patch's outputs, each (BLOCK_P, BLOCK_CO)
    for _ in tl.static_range(ROWS * COLUMNS):
        sums = sums + (tl.zeros((BLOCK_P, BLOCK_CO), tl.float32) + tl.load(bias + co)[None, :],)
    if WINDOW == "ahead":
        c = tl.arange(0, BLOCK_C)  # (BLOCK_C,)
        seen: tl.tuple = ()
        taps: tl.tuple = ()
        for tap in tl.static_range(K * K):
            seen = seen + (_seen(corner, h, w, c, exists, tap // K, tap % K, Hi, Wi, C, BLOCK_C),)
            taps = taps + (tl.load(dw_wt + tap * (BLOCKS_C * BLOCK_C) + c),)
        shift = tl.load(dw_bias + c)
        filters = tl.load(wt + c[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :])
        for block in range(BLOCKS_C):
            # What the next step needs; the last one asks for its own once more.
            c = min(block + 1, BLOCKS_C - 1) * BLOCK_C + tl.arange(0, BLOCK_C)
            next_seen: tl.tuple = ()
            next_taps: tl.tuple = ()
            for tap in tl.static_range(K * K):
                next_seen = next_seen + (
                    _seen(corner, h, w, c, exists, tap // K, tap % K, Hi, Wi, C, BLOCK_C),
                )
                next_taps = next_taps + (tl.load(dw_wt + tap * (BLOCKS_C * BLOCK_C) + c),)
            next_shift = tl.load(dw_bias + c)
            next_filters = tl.load(wt + c[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :])
            z = tl.zeros((BLOCK_P, BLOCK_C), tl.float32) + shift[None, :]
            for tap in tl.static_range(K * K):
                z += seen[tap].to(tl.float32) * taps[tap].to(tl.float32)[None, :]
            z = activate(z, ACTIVATION).to(x.dtype.element_ty)
            sums = (tl.dot(z, filters, sums[0], input_precision=PRECISION),)
            seen = next_seen
            taps = next_taps
            shift = next_shift
            filters = next_filters
    else:
        # Rows of the window at once. The loop over them is none that the compiler unrolls, even
        # where there is one turn: what it makes is changed to the layout of tl.dot as a whole. From
        # sums in plain sight the compiler would move that change up to each load, 9 of them.
        AT_ONCE: tl.constexpr = K if WINDOW == "whole" else 1
        turns = K // AT_ONCE * tl.num_programs(1)  # which is 1, but the compiler does not know
        for block in range(BLOCKS_C):
            c = block * BLOCK_C + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
            # Asked for before the pixels, so that it arrives while those are summed.
            filters = tl.load(wt + c[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :])
            shift = tl.load(dw_bias + c)[None, :]
            patch: tl.tuple = ()  # of z, each (BLOCK_P, BLOCK_C)
            for _ in tl.static_range(ROWS * COLUMNS):
                patch = patch + (tl.zeros((BLOCK_P, BLOCK_C), tl.float32) + shift,)
            for turn in range(turns):
                added: tl.tuple = ()
                for output in tl.static_range(ROWS * COLUMNS):
                    z = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
                    for tap in tl.static_range(AT_ONCE * K):
                        kh = turn * AT_ONCE + tap // K if AT_ONCE < K else tap // K
                        # What several outputs of a patch see, the compiler loads once.
                        value = _seen(
                            corner, h, w, c, exists,
                            output // COLUMNS * stride + kh, output % COLUMNS * stride + tap % K,
                            Hi, Wi, C, BLOCK_C,
                        )  # fmt: skip
                        weight = tl.load(dw_wt + (kh * K + tap % K) * (BLOCKS_C * BLOCK_C) + c)
                        z += value.to(tl.float32) * weight.to(tl.float32)[None, :]
                    added = added + (patch[output] + z,)
                patch = added
            products: tl.tuple = ()
            for output in tl.static_range(ROWS * COLUMNS):
                z = activate(patch[output], ACTIVATION).to(x.dtype.element_ty)
                products = products + (tl.dot(z, filters, sums[output], input_precision=PRECISION),)
            sums = products

    place = y + first.to(tl.int64) * (Ho * Wo * Co) + ((n * Ho + ho) * Wo + wo) * Co  # (BLOCK_P,)
    for output in tl.static_range(ROWS * COLUMNS):
        row = output // COLUMNS
        column = output % COLUMNS
        inside = (exists & (ho < Ho - row) & (wo < Wo - column))[:, None]
        if Co % BLOCK_CO != 0:
            inside = inside & (co < Co)[None, :]
        at = place[:, None] + co[None, :] + (row * Wo + column) * Co
        value = activate(sums[output], ACTIVATION)
        tl.store(at, value.to(y.dtype.element_ty), mask=inside)


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
            Tensor(name="wt", shape=(inputs, outputs), dtype=dtype),
            Tensor(name="bias", shape=(outputs,), dtype="float32"),
            Tensor(name="y", shape=workload.y_shape, dtype=dtype),
        ),
        launches=(
            Launch(
                kernel=_separable,
                tensors=("x", "dw_wt", "dw_bias", "wt", "bias", "y"),
                constants=window(workload)
                | {"N": workload.N, "C": workload.C, "Co": workload.Co}
                | {"ACTIVATION": workload.activation, "PRECISION": config["PRECISION"]}
                | {name: config[name] for name in (*TILE, "BLOCK_WO", *PATCH, "WINDOW")},
                programs=programs(workload, config),
                num_warps=int(config["NUM_WARPS"]),
                # Only innermost loops are pipelined, and that of the taps is too short.
                num_stages=1,
            ),
        ),
    )


def lower(workload: Separable, config: Config, target: Target) -> Any:
    """The function main(x, dw_wt, dw_bias, wt, bias, y) and its machine code."""
    from kernels.triton.embed import lowered

    return lowered(call(workload, config, target), target)


def pack(workload: Separable, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """dw_wt (K,K,C), dw_bias (C,), wt (C,Co), bias (Co,), padded with zeros to whole blocks."""
    dw_wt, dw_bias, wt, bias = weights
    BLOCK_C, BLOCK_CO = int(config["BLOCK_C"]), int(config["BLOCK_CO"])
    return (
        padded(dw_wt, BLOCK_C),
        padded(dw_bias, BLOCK_C),
        padded(wt, BLOCK_C, BLOCK_CO),
        padded(bias, BLOCK_CO),
    )


def _default(workload: Separable, sms: int, choices: tuple[tuple[int, ...], ...]) -> Config:
    half = (
        (64, 256, 64, 8, "rows"),
        (64, 128, 64, 8, "rows"),
        (32, 128, 64, 8, "rows"),
        (32, 64, 64, 8, "whole"),
        (16, 64, 128, 8, "whole"),
    )
    full = ((64, 64, 32, 8, "rows"), (32, 64, 32, 8, "rows"), (16, 32, 64, 8, "rows"))
    tiles: tuple[tuple[Value, ...], ...] = half if workload.dtype == "float16" else full
    columns = 8 if workload.Wo >= 28 else 0
    names = (*TILE, "NUM_WARPS", "WINDOW", "BLOCK_WO", *PATCH)
    wanted = (dict(zip(names, (*tile, columns, 1, 1), strict=True)) for tile in tiles)
    return filling(wanted, dict(zip(TILE, choices, strict=True)), partial(programs, workload), sms)


def finest(workload: Separable, BLOCK_P: int, BLOCK_CO: int) -> int:
    tile: Config = {"BLOCK_P": BLOCK_P, "BLOCK_CO": BLOCK_CO, "BLOCK_WO": 0}
    return programs(workload, tile | dict.fromkeys(PATCH, 1))


def tiles(workload: Separable, config: Config) -> int:
    """Blocks of patches."""
    BLOCK_P, BLOCK_WO, ROWS, COLUMNS = (
        int(config[name]) for name in ("BLOCK_P", "BLOCK_WO", *PATCH)
    )
    height, width = blocks(workload.Ho, ROWS), blocks(workload.Wo, COLUMNS)
    if BLOCK_WO == 0:
        return blocks(workload.N * height * width, BLOCK_P)
    rows = max(BLOCK_P // BLOCK_WO, 1)
    return workload.N * blocks(height, rows) * blocks(width, BLOCK_WO)


def programs(workload: Separable, config: Config) -> int:
    return tiles(workload, config) * blocks(workload.Co, int(config["BLOCK_CO"]))
