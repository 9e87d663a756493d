"""Global average pooling and the dense layer behind it, NHWC, Triton.

Maths   y[n,co] = act(bias[co] + sum_ci (sum_p x[n,p,ci]) * wt[co,ci] / P)   over P = H*W pixels
Shapes  x (N,P,Ci)  wt (Co,Ci)  bias (Co,)  y (N,Co); wt and bias padded to whole blocks
Types   storage workload.dtype, bias and accumulation float32; means that go through memory are
        rounded to workload.dtype; PRECISION says how float32 is multiplied, see tile.precisions.
Tiling  With LAUNCHES = 1 one program makes BLOCK_CO outputs of one image, and for that pools all
        its channels, BLOCK_CI at a time: the image is read once for each block of outputs. With
        LAUNCHES = 2 a first launch pools BLOCK_C channels of one image a program, the means go
        through memory, and in a second a program makes BLOCK_CO outputs of BLOCK_N images, from 16
        images on by tensor cores. Elsewhere, a program has all its loads under way at once, as far
        as registers reach: what waits for another load waits longer than all else takes.
Limits  less than 2**30 elements an image, and as many weights.
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
    WARP,
    WIDEST_BYTES,
    activate,
    await_previous,
    choices,
    cover,
    filling,
    nearest,
    on_gpu,
    padded,
    precisions,
)
from kernels.workload import ITEM_BYTES, Head, Workload
from targets.target import Target

MOST_LOADED = 128  # registers of a thread whose loads are under way at once
LEAST_ROWS = 16  # of one step of a tensor core
MOST_ALONE = 16  # images each of which has programs that read weights for it alone
FEW = 4  # images for which that is best by default
STAGES = 4  # steps of a dense layer on tensor cores that are under way at once


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Head)
        and on_gpu(target)
        and max(workload.H * workload.W, workload.Co) * workload.Ci < MOST_ELEMENTS
    )


def space(workload: Head, target: Target) -> Space:
    """Programs that have few rounds of loads, in a number that fits the SMs."""
    N, Ci, Co, dtype = workload.N, workload.Ci, workload.Co, workload.dtype
    sms, shared_bytes = target.gpu.sms, target.gpu.shared_per_block_bytes
    wide, few = WIDEST_BYTES // ITEM_BYTES[dtype], N <= FEW
    deepest = 32 if dtype == "float32" else 128  # step: factors are split in registers
    images = (1,) if N == 1 else choices((16, 32, 64, 128), N, least=LEAST_ROWS)
    images = (1, *images) if 1 < N <= MOST_ALONE else images
    outputs = choices((4, 8, 16, 32, 64, 128), Co, least=8)
    inputs = choices((32, 64, 128, 256, 512, 1024), Ci, least=32)
    pooled = choices((8, 16, 32, 64) if few else (64, 128, 256, 512), Ci, least=8)
    words = precisions(dtype, target)
    finest: Config = {"BLOCK_N": images[0], "BLOCK_CO": LEAST_ROWS}
    fill = min(sms, _programs(workload, finest)) // 3
    default = _default(workload, sms, (images, outputs))
    pool = nearest(pooled, 32 if few else 128)

    def share(config: Config) -> float:
        """Of a block of weights, in elements a thread."""
        return int(config["BLOCK_CO"]) * int(config["BLOCK_CI"]) / _threads(config)

    def sums(config: Config) -> float:
        """That a thread has: one for each output, or for each product of a step."""
        if _multiplies(config):
            return int(config["BLOCK_N"]) * int(config["BLOCK_CO"]) / _threads(config)
        return share(config)

    return Space(
        knobs=(
            Knob("LAUNCHES", (1, 2), 2),
            Knob("BLOCK_N", images, default["BLOCK_N"]),
            Knob("BLOCK_CO", outputs, default["BLOCK_CO"]),
            Knob("BLOCK_CI", inputs, nearest(inputs, 256 if few else deepest)),
            Knob("BLOCK_C", pooled, pool),
            Knob("PRECISION", words, words[-1]),
            Knob("NUM_WARPS", (4, 8, 16), 4),
        ),
        constraints=(
            Constraint(
                "a launch pools one image", lambda c: c["LAUNCHES"] == 2 or c["BLOCK_N"] == 1
            ),
            Constraint(
                "one launch pools what it multiplies",
                lambda c: c["LAUNCHES"] == 2 or c["BLOCK_C"] == pool,
            ),
            Constraint(
                "one launch has few rounds",
                lambda c: c["LAUNCHES"] == 2 or int(c["BLOCK_CI"]) >= inputs[-1] // 2,
            ),
            Constraint(
                "only pooling has many warps", lambda c: c["NUM_WARPS"] != 16 or c["LAUNCHES"] == 1
            ),
            Constraint("sums fit registers", lambda c: sums(c) <= 64),
            Constraint(
                "warps have work",
                lambda c: sums(c) >= (4 if _multiplies(c) else wide) or c["NUM_WARPS"] == 4,
            ),
            Constraint(
                "precision matters on tensor cores",
                lambda c: _multiplies(c) or c["PRECISION"] == words[-1],
            ),
            Constraint(
                "a tensor core has outputs",
                lambda c: not _multiplies(c) or int(c["BLOCK_CO"]) >= LEAST_ROWS,
            ),
            Constraint(
                "factors fit registers",
                lambda c: not _multiplies(c) or int(c["BLOCK_CI"]) <= deepest,
            ),
            Constraint(
                "operands fit shared memory",
                lambda c: not _multiplies(c) or _staged_bytes(workload, c) <= shared_bytes,
            ),
            Constraint("SMs have work", lambda c: _programs(workload, c) >= fill),
        ),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _mean(
    x: tl.tensor,
    ci: tl.tensor,
    P: tl.constexpr,
    Ci: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    STEPS_P: tl.constexpr,
) -> tl.tensor:
    """Of the pixels of the image at x, by channel, (BLOCK_CI,)."""
    acc = tl.zeros((BLOCK_P, BLOCK_CI), tl.float32)
    for first in range(0, P, STEPS_P * BLOCK_P):
        pixels = ()
        for step in tl.static_range(STEPS_P):
            p = first + step * BLOCK_P + tl.arange(0, BLOCK_P)  # (BLOCK_P,)
            inside = (p < P)[:, None]
            if Ci % BLOCK_CI != 0:
                inside = inside & (ci < Ci)[None, :]
            at = p[:, None] * Ci + ci[None, :]
            pixels += (tl.load(x + at, mask=inside, other=0.0),)  # type: ignore[assignment]
        for step in tl.static_range(STEPS_P):
            acc += pixels[step].to(tl.float32)
    return tl.sum(acc, axis=0) * (1.0 / P)


@triton.jit  # type: ignore[untyped-decorator]
def _head(
    x: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    P: tl.constexpr,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    STEPS_P: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    ROW: tl.constexpr = triton.cdiv(Ci, BLOCK_CI) * BLOCK_CI
    n = (tl.program_id(0) // BLOCKS_CO).to(tl.int64)
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    total = tl.load(bias + co)  # (BLOCK_CO,)
    acc = tl.zeros((BLOCK_CO, BLOCK_CI), tl.float32)
    for first in range(0, Ci, BLOCK_CI):
        ci = first + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
        filters = tl.load(wt + co[:, None] * ROW + ci[None, :])  # (BLOCK_CO, BLOCK_CI)
        mean = _mean(x + n * (P * Ci), ci, P, Ci, BLOCK_P, BLOCK_CI, STEPS_P)
        acc += filters.to(tl.float32) * mean[None, :]
    total = activate(total + tl.sum(acc, axis=1), ACTIVATION)
    tl.store(y + n * Co + co, total.to(y.dtype.element_ty), mask=co < Co)


@triton.jit  # type: ignore[untyped-decorator]
def _head_pool(
    x: tl.tensor,
    means: tl.tensor,
    P: tl.constexpr,
    Ci: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS_P: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_C: tl.constexpr = triton.cdiv(Ci, BLOCK_C)
    n = (tl.program_id(0) // BLOCKS_C).to(tl.int64)
    c = tl.program_id(0) % BLOCKS_C * BLOCK_C + tl.arange(0, BLOCK_C)  # (BLOCK_C,)
    mean = _mean(x + n * (P * Ci), c, P, Ci, BLOCK_P, BLOCK_C, STEPS_P)
    tl.store(means + n * Ci + c, mean.to(means.dtype.element_ty), mask=c < Ci)


@triton.jit  # type: ignore[untyped-decorator]
def _head_dense(
    means: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    STEPS_CI: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    ROW: tl.constexpr = triton.cdiv(Ci, BLOCK_CI) * BLOCK_CI
    n = (tl.program_id(0) // BLOCKS_CO).to(tl.int64)
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    total = tl.load(bias + co)  # (BLOCK_CO,)
    acc = tl.zeros((BLOCK_CO, BLOCK_CI), tl.float32)
    for first in range(0, ROW, STEPS_CI * BLOCK_CI):
        filters, mean = (), ()
        for step in tl.static_range(STEPS_CI):
            ci = first + step * BLOCK_CI + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
            at = co[:, None] * ROW + ci[None, :]
            filters += (tl.load(wt + at, mask=(ci < ROW)[None, :], other=0.0),)  # type: ignore[assignment]
        # For each row of a block, though rows are the same and most of it is read once: a vector
        # would have other places in threads than blocks have, and change them at barriers.
        for step in tl.static_range(STEPS_CI):
            ci = first + step * BLOCK_CI + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
            at = (n * Ci + ci)[None, :] + tl.zeros((BLOCK_CO, 1), tl.int32)
            mean += (tl.load(means + at, mask=(ci < Ci)[None, :], other=0.0),)  # type: ignore[assignment]
        for step in tl.static_range(STEPS_CI):
            acc += filters[step].to(tl.float32) * mean[step].to(tl.float32)
    total = activate(total + tl.sum(acc, axis=1), ACTIVATION)
    tl.store(y + n * Co + co, total.to(y.dtype.element_ty), mask=co < Co)


@triton.jit  # type: ignore[untyped-decorator]
def _head_product(
    means: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    N: tl.constexpr,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    ROW: tl.constexpr = triton.cdiv(Ci, BLOCK_CI) * BLOCK_CI
    n0 = tl.program_id(0) // BLOCKS_CO * BLOCK_N
    n = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    total = tl.load(bias + co)[None, :]  # (1, BLOCK_CO)
    acc = tl.zeros((BLOCK_N, BLOCK_CO), tl.float32)
    for first in range(0, Ci, BLOCK_CI):
        ci = first + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
        filters = tl.load(wt + co[:, None] * ROW + ci[None, :])  # (BLOCK_CO, BLOCK_CI)
        inside = (n < N - n0)[:, None] & (ci < Ci)[None, :]
        at = n[:, None] * Ci + ci[None, :]
        mean = tl.load(means + n0.to(tl.int64) * Ci + at, mask=inside, other=0.0)
        acc = tl.dot(mean, tl.trans(filters), acc, input_precision=PRECISION)
    total = activate(total + acc, ACTIVATION)  # (BLOCK_N, BLOCK_CO)
    inside = (n < N - n0)[:, None] & (co < Co)[None, :]
    at = n[:, None] * Co + co[None, :]
    tl.store(y + n0.to(tl.int64) * Co + at, total.to(y.dtype.element_ty), mask=inside)


def call(workload: Head, config: Config, target: Target) -> Call:
    """One launch, or one that pools and one that multiplies."""
    N, Ci, Co = workload.N, workload.Ci, workload.Co
    BLOCK_N, BLOCK_CO, BLOCK_CI = (int(config[f"BLOCK_{axis}"]) for axis in ("N", "CO", "CI"))
    rows, columns = blocks(Co, BLOCK_CO), blocks(Ci, BLOCK_CI)
    dense = {"Ci": Ci, "Co": Co, "ACTIVATION": workload.activation}
    dense |= {"BLOCK_CO": BLOCK_CO, "BLOCK_CI": BLOCK_CI}

    def launch(
        kernel: Any, tensors: str, constants: dict[str, Any], programs: int, stages: int = 1
    ) -> Launch:
        return Launch(
            kernel=kernel,
            tensors=tuple(tensors.split()),
            constants=constants,
            programs=programs,
            num_warps=int(config["NUM_WARPS"]),
            num_stages=stages,
        )

    launches: tuple[Launch, ...]
    if config["LAUNCHES"] == 1:
        pooled = _pooling(workload, BLOCK_CI, config)
        launches = (launch(_head, "x wt bias y", dense | pooled, N * rows),)
    else:
        BLOCK_C = int(config["BLOCK_C"])
        pooled = _pooling(workload, BLOCK_C, config) | {"Ci": Ci, "BLOCK_C": BLOCK_C}
        pool = launch(_head_pool, "x means", pooled, N * blocks(Ci, BLOCK_C))
        if _multiplies(config):
            dense |= {"N": N, "BLOCK_N": BLOCK_N, "PRECISION": config["PRECISION"]}
            programs, stages = blocks(N, BLOCK_N) * rows, STAGES
            product = launch(_head_product, "means wt bias y", dense, programs, stages)
        else:
            dense |= {"STEPS_CI": _steps(workload, columns, BLOCK_CO * BLOCK_CI, config)}
            product = launch(_head_dense, "means wt bias y", dense, N * rows)
        launches = (pool, product)
    means = Tensor(name="means", shape=(N, Ci), dtype=workload.dtype)
    return Call(
        arguments=(
            Tensor(name="x", shape=(N, workload.H * workload.W, Ci), dtype=workload.dtype),
            Tensor(name="wt", shape=(rows * BLOCK_CO, columns * BLOCK_CI), dtype=workload.dtype),
            Tensor(name="bias", shape=(rows * BLOCK_CO,), dtype="float32"),
            Tensor(name="y", shape=(N, Co), dtype=workload.dtype),
        ),
        scratch=(means,) if config["LAUNCHES"] == 2 else (),
        launches=launches,
    )


def lower(workload: Head, config: Config, target: Target) -> Any:
    """The function main(x, wt, bias, y) and its machine code."""
    from kernels.triton.embed import lowered

    return lowered(call(workload, config, target), target)


def pack(workload: Head, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) -> (Co,Ci) and bias (Co,), padded with zeros to whole blocks."""
    wt, bias = weights
    BLOCK_CO, BLOCK_CI = int(config["BLOCK_CO"]), int(config["BLOCK_CI"])
    return padded(wt.T, BLOCK_CO, BLOCK_CI), padded(bias, BLOCK_CO)


def _default(workload: Head, sms: int, choices: tuple[tuple[int, ...], ...]) -> Config:
    """The largest tile of outputs that keeps a third of the SMs busy: it reads least."""
    tile = ("BLOCK_N", "BLOCK_CO")
    tiles = ((1, 8),) if workload.N <= FEW else ((64, 64), (32, 64), (32, 32), (16, 32), (16, 16))
    wanted = (dict(zip(tile, each, strict=True)) for each in tiles)
    programs = partial(_programs, workload)
    return filling(wanted, dict(zip(tile, choices, strict=True)), programs, sms // 3)


def _programs(workload: Head, config: Config) -> int:
    """That make outputs."""
    images = blocks(workload.N, int(config["BLOCK_N"]))
    return images * blocks(workload.Co, int(config["BLOCK_CO"]))


def _multiplies(config: Config) -> bool:
    """Whether the dense layer is a product of matrices."""
    return config["LAUNCHES"] == 2 and int(config["BLOCK_N"]) >= LEAST_ROWS


def _staged_bytes(workload: Head, config: Config) -> int:
    rows = int(config["BLOCK_N"]) + int(config["BLOCK_CO"])
    return STAGES * rows * int(config["BLOCK_CI"]) * ITEM_BYTES[workload.dtype]


def _pooling(workload: Head, channels: int, config: Config) -> dict[str, Any]:
    """In a step a thread has one load, the widest; a round has as many steps as registers hold."""
    P, wide = workload.H * workload.W, WIDEST_BYTES // ITEM_BYTES[workload.dtype]
    pixels = min(max(wide * _threads(config) // channels, 1), cover(P))
    steps = _steps(workload, blocks(P, pixels), pixels * channels, config)
    return {"P": P, "BLOCK_P": pixels, "STEPS_P": steps}


def _steps(workload: Head, steps: int, elements: int, config: Config) -> int:
    """Of so many elements each whose loads are under way at once, of `steps` in all."""
    registers = elements * ITEM_BYTES[workload.dtype] / (4 * _threads(config))
    most = MOST_LOADED if _threads(config) <= 256 else MOST_LOADED // 2
    return min(steps, max(1, int(most / registers)))


def _threads(config: Config) -> int:
    return WARP * int(config["NUM_WARPS"])
