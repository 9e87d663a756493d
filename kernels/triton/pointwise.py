"""Pointwise convolution, NHWC, Triton: a matrix product over pixels, on tensor cores in float16.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co])   over the pixels p of all images
Shapes  x (P,Ci)  wt (Ci,Co)  bias (Co,)  y (P,Co), P = N*H*W; wt and bias padded to whole blocks
Types   storage workload.dtype, bias and accumulation float32; PRECISION says how float32 is
        multiplied, see tile.precisions.
Tiling  One program computes BLOCK_P pixels x BLOCK_CO channels, BLOCK_CI products at a time, while
        the next NUM_STAGES - 1 steps' operands are on their way to shared memory. Programs that run
        side by side share GROUP_P blocks of pixels. With PERSISTENT there are as many programs as
        SMs, and each takes several tiles, fetching for the next while it ends one. With SPLIT_CI
        above 1 a tile's products are shared among so many programs, each sum goes to scratch, and a
        second launch adds them up: for few pixels, whose tiles leave most SMs idle.
Limits  less than 2**30 pixels, and as many weights.
Source  own; the order of tiles in groups is that of Triton's tutorial on matrix multiplication.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import triton
from triton import language as tl

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.triton.call import Call, Constant, Launch, Tensor
from kernels.triton.tile import (
    MOST_ELEMENTS,
    MOST_SUMS,
    WARP,
    activate,
    await_previous,
    choices,
    filling,
    on_gpu,
    padded,
    precisions,
)
from kernels.workload import ITEM_BYTES, Pointwise, Workload
from targets.target import Target

TILE = ("BLOCK_P", "BLOCK_CO", "BLOCK_CI")
SUMMED = 1024  # outputs of one program of the second launch


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Pointwise)
        and on_gpu(target)
        and max(workload.pixels, workload.Ci * workload.Co) < MOST_ELEMENTS
    )


def space(workload: Pointwise, target: Target) -> Space:
    """Tiles that fit registers and shared memory, in a number that fits the SMs."""
    gpu, dtype = target.gpu, workload.dtype
    P = workload.pixels
    pixels = choices((16, 32, 64, 128), P, least=16)
    outputs = choices((16, 32, 64, 128, 256), workload.Co, least=16)[-4:]
    inputs = choices((16, 32, 64, 128, 256), workload.Ci, least=16)[-3:]
    if dtype == "float32":
        inputs = choices((16, 32), workload.Ci, least=16)[-1:]
    words = precisions(dtype, target)
    default = _default(workload, gpu.sms, (pixels, outputs, inputs))
    large = min(32, pixels[-1] * outputs[-1] // (8 * WARP))
    finest: Config = {"BLOCK_P": pixels[0], "BLOCK_CO": outputs[0]}
    fill = min(gpu.sms, _tiles(workload, finest)) // 4

    def sums(config: Config) -> float:
        """That a thread has."""
        tile = int(config["BLOCK_P"]) * int(config["BLOCK_CO"])
        return tile / (WARP * int(config["NUM_WARPS"]))

    def staged_bytes(config: Config) -> int:
        """Operands in shared memory, and with PERSISTENT the tile that is being stored, too."""
        BP, BCO, BCI = (int(config[name]) for name in TILE)
        stored = BP * BCO if config["PERSISTENT"] else 0
        steps = int(config["NUM_STAGES"]) * (BP + BCO) * BCI
        return ITEM_BYTES[dtype] * (steps + stored)

    def steps(config: Config) -> int:
        return blocks(workload.Ci, int(config["BLOCK_CI"]))

    def split_well(config: Config) -> bool:
        """Among programs that each have a few steps, where tiles alone leave SMs idle."""
        split = int(config["SPLIT_CI"])
        idle = 2 * _tiles(workload, config) <= gpu.sms and not config["PERSISTENT"]
        return split == 1 or (idle and steps(config) >= 2 * split)

    return Space(
        knobs=(
            Knob("BLOCK_P", pixels, default["BLOCK_P"]),
            Knob("BLOCK_CO", outputs, default["BLOCK_CO"]),
            Knob("BLOCK_CI", inputs, default["BLOCK_CI"]),
            Knob("GROUP_P", (1, 8), 1),
            Knob("PERSISTENT", (0, 1), 0),
            Knob("SPLIT_CI", (1, 2, 4), 1),
            Knob("PRECISION", words, words[-1]),
            Knob("NUM_WARPS", (4, 8), 4),
            Knob("NUM_STAGES", (2, 3, 4, 5), 3),
        ),
        constraints=(
            Constraint(
                "sums fit registers",
                lambda c: sums(c) <= (MOST_SUMS if dtype == "float16" else MOST_SUMS // 2),
            ),
            Constraint("warps have work", lambda c: sums(c) >= 16 or c["NUM_WARPS"] == 4),
            Constraint(
                "operands fit shared memory",
                lambda c: staged_bytes(c) <= gpu.shared_per_block_bytes,
            ),
            Constraint(
                "stages have steps",
                lambda c: (
                    c["NUM_STAGES"] == 2
                    or int(c["NUM_STAGES"]) <= steps(c)
                    or (c["PERSISTENT"] == 1 and c["NUM_STAGES"] == 3)
                ),
            ),
            Constraint(
                "SMs have work",
                lambda c: _tiles(workload, c) * int(c["SPLIT_CI"]) >= fill,
            ),
            Constraint(
                "tiles are small only where they are few",
                lambda c: sums(c) >= large or _tiles(workload, c) <= 8 * gpu.sms,
            ),
            Constraint("a split leaves steps and fills SMs", split_well),
            Constraint(
                "who persists has tiles",
                lambda c: not c["PERSISTENT"] or _tiles(workload, c) >= 2 * gpu.sms,
            ),
            Constraint(
                "groups are smaller than the whole",
                lambda c: (
                    c["GROUP_P"] == 1
                    or (_tiles(workload, c) >= 2 * gpu.sms and int(c["BLOCK_CO"]) < workload.Co)
                ),
            ),
        ),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _pointwise(
    x: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    P: tl.constexpr,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    GROUP_P: tl.constexpr,
    PERSISTENT: tl.constexpr,
    SPLIT_CI: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_P: tl.constexpr = triton.cdiv(P, BLOCK_P)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    STEPS: tl.constexpr = triton.cdiv(triton.cdiv(Ci, BLOCK_CI), SPLIT_CI)
    for tile in tl.range(
        tl.program_id(0), BLOCKS_P * BLOCKS_CO * SPLIT_CI, PROGRAMS, flatten=PERSISTENT
    ):
        split = tile % SPLIT_CI
        group = tile // SPLIT_CI // (GROUP_P * BLOCKS_CO)
        member = tile // SPLIT_CI % (GROUP_P * BLOCKS_CO)
        members = min(BLOCKS_P - group * GROUP_P, GROUP_P)
        p0 = (group * GROUP_P + member % members) * BLOCK_P
        co0 = member // members * BLOCK_CO
        acc = tl.zeros((BLOCK_P, BLOCK_CO), tl.float32)
        if SPLIT_CI == 1 and not PERSISTENT:  # on its way with the operands, not behind them
            acc += tl.load(bias + co0 + tl.arange(0, BLOCK_CO))[None, :]
        for step in range(STEPS):
            # Addresses are made within the loop: when both loops become one, what is known of the
            # alignment of values from without is lost, and with it every wide load.
            p = tl.arange(0, BLOCK_P)  # (BLOCK_P,)
            co = tl.multiple_of(co0, BLOCK_CO) + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
            ci = (split * STEPS + step) * BLOCK_CI + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
            inside = (p < P - p0)[:, None]
            if Ci % BLOCK_CI != 0 or Ci < SPLIT_CI * STEPS * BLOCK_CI:
                inside = inside & (ci < Ci)[None, :]
            pixels = x + p0.to(tl.int64) * Ci + p[:, None] * Ci + ci[None, :]
            pixels = tl.load(pixels, mask=inside, other=0.0)  # (BLOCK_P, BLOCK_CI)
            filters = wt + ci[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :]
            if triton.cdiv(Ci, BLOCK_CI) < SPLIT_CI * STEPS:
                filters = tl.load(filters, mask=(ci < Ci)[:, None], other=0.0)
            else:
                filters = tl.load(filters)  # (BLOCK_CI, BLOCK_CO)
            acc = tl.dot(pixels, filters, acc, input_precision=PRECISION)

        p = tl.arange(0, BLOCK_P)
        co = co0 + tl.arange(0, BLOCK_CO)
        inside = (p < P - p0)[:, None]
        if Co % BLOCK_CO != 0:
            inside = inside & (co < Co)[None, :]
        if PERSISTENT:
            acc += tl.load(bias + co)[None, :]
        if SPLIT_CI == 1:
            acc = activate(acc, ACTIVATION)
        row = split.to(tl.int64) * P + p0
        tl.store(
            y + row * Co + p[:, None] * Co + co[None, :], acc.to(y.dtype.element_ty), mask=inside
        )


@triton.jit  # type: ignore[untyped-decorator]
def _pointwise_sum(
    parts: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    P: tl.constexpr,
    Co: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SPLIT_CI: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)  # (BLOCK,), as all of these
    inside = at < P * Co
    acc = tl.load(bias + at % Co)
    for split in tl.static_range(SPLIT_CI):
        acc += tl.load(parts + split * P * Co + at, mask=inside, other=0.0)
    tl.store(y + at, activate(acc, ACTIVATION).to(y.dtype.element_ty), mask=inside)


def call(workload: Pointwise, config: Config, target: Target) -> Call:
    """One launch, and with SPLIT_CI above 1 another that adds up."""
    P, Ci, Co, dtype = workload.pixels, workload.Ci, workload.Co, workload.dtype
    BLOCK_CO, BLOCK_CI, split = (int(config[n]) for n in ("BLOCK_CO", "BLOCK_CI", "SPLIT_CI"))
    columns = blocks(Co, BLOCK_CO) * BLOCK_CO
    tiles = _tiles(workload, config) * split
    programs = min(target.gpu.sms, tiles) if config["PERSISTENT"] else tiles
    sizes: dict[str, Constant] = {
        "P": P,
        "Co": Co,
        "ACTIVATION": workload.activation,
        "SPLIT_CI": split,
    }
    product = Launch(
        kernel=_pointwise,
        tensors=("x", "wt", "bias", "y" if split == 1 else "parts"),
        constants=sizes
        | {"Ci": Ci, "PROGRAMS": programs}
        | {name: config[name] for name in (*TILE, "GROUP_P", "PERSISTENT", "PRECISION")},
        programs=programs,
        num_warps=int(config["NUM_WARPS"]),
        num_stages=int(config["NUM_STAGES"]),
    )
    total = Launch(
        kernel=_pointwise_sum,
        tensors=("parts", "bias", "y"),
        constants=sizes | {"BLOCK": SUMMED},
        programs=blocks(P * Co, SUMMED),
        num_warps=4,
        num_stages=1,
    )
    return Call(
        arguments=(
            Tensor(name="x", shape=(P, Ci), dtype=dtype),
            Tensor(name="wt", shape=(blocks(Ci, BLOCK_CI) * BLOCK_CI, columns), dtype=dtype),
            Tensor(name="bias", shape=(columns,), dtype="float32"),
            Tensor(name="y", shape=(P, Co), dtype=dtype),
        ),
        scratch=(Tensor(name="parts", shape=(split, P, Co), dtype="float32"),) if split > 1 else (),
        launches=(product, total) if split > 1 else (product,),
    )


def lower(workload: Pointwise, config: Config, target: Target) -> Any:
    """The function main(x, wt, bias, y) and its machine code."""
    from kernels.triton.embed import lowered

    return lowered(call(workload, config, target), target)


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) and bias (Co,), padded with zeros to whole blocks."""
    wt, bias = weights
    BLOCK_CO, BLOCK_CI = int(config["BLOCK_CO"]), int(config["BLOCK_CI"])
    return padded(wt, BLOCK_CI, BLOCK_CO), padded(bias, BLOCK_CO)


def _default(workload: Pointwise, sms: int, choices: tuple[tuple[int, ...], ...]) -> Config:
    half = ((128, 128, 64), (64, 128, 64), (64, 64, 64), (32, 64, 64), (32, 32, 128), (16, 32, 128))
    full = ((64, 64, 32), (32, 64, 32), (32, 32, 32), (16, 32, 32))
    tiles = half if workload.dtype == "float16" else full
    wanted = (dict(zip(TILE, tile, strict=True)) for tile in tiles)
    return filling(wanted, dict(zip(TILE, choices, strict=True)), partial(_tiles, workload), sms)


def _tiles(workload: Pointwise, config: Config) -> int:
    BLOCK_P, BLOCK_CO = int(config["BLOCK_P"]), int(config["BLOCK_CO"])
    return blocks(workload.pixels, BLOCK_P) * blocks(workload.Co, BLOCK_CO)
