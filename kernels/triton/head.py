"""Global average pooling and the dense layer behind it, NHWC, Triton.

Maths   y[n,co] = act(bias[co] + sum_ci (sum_p x[n,p,ci]) * wt[ci,co] / P)   over P = H*W pixels
Shapes  x (N,P,Ci)  wt (Ci,Co)  bias (Co,)  y (N,Co); wt and bias padded to whole blocks
Types   storage workload.dtype, bias and accumulation float32; means that go through memory are
        rounded to workload.dtype; PRECISION says how float32 is multiplied, see tile.precisions.
Tiling  With LAUNCHES = 1 one program makes BLOCK_CO outputs of one image, and for that pools all
        its channels, BLOCK_CI at a time: the image is read once for each block of outputs, which
        for few images costs less than a second launch. With LAUNCHES = 2 a first launch pools
        BLOCK_CI channels of one image a program, the means go through memory, and a second makes
        BLOCK_CO outputs of BLOCK_N images a program, from 16 images on by tensor cores.
Limits  less than 2**30 elements an image, and as many weights.
Source  own.
"""

from __future__ import annotations

from typing import Any

import triton
from triton import language as tl

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.triton.call import Call, Launch, Tensor
from kernels.triton.tile import (
    MOST_ELEMENTS,
    WARP,
    activate,
    await_previous,
    choices,
    cover,
    nearest,
    on_gpu,
    padded,
    precisions,
)
from kernels.workload import ITEM_BYTES, Head, Workload
from targets.target import Target

MOST_POOLED = 16  # pixels that one step of pooling loads
LEAST_ROWS = 16  # of one step of a tensor core
STAGES = 3  # steps of a dense layer on tensor cores that are under way at once


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Head)
        and on_gpu(target)
        and max(workload.H * workload.W, workload.Co) * workload.Ci < MOST_ELEMENTS
    )


def space(workload: Head, target: Target) -> Space:
    """Blocks of which a thread has a few elements, in a number that fits the SMs."""
    sms, shared_bytes = target.gpu.sms, target.gpu.shared_per_block_bytes
    inputs = choices((32, 64, 128, 256), workload.Ci, least=32)
    deepest = 32 if workload.dtype == "float32" else 128  # step: factors are split in registers
    outputs = choices((8, 16, 32, 64, 128), workload.Co, least=8)
    images = choices((1, 2, 4, 16, 32, 64), workload.N)
    words = precisions(workload.dtype, target)
    fill = min(sms, workload.N * blocks(workload.Co, outputs[0])) // 4
    few = blocks(workload.Co, 32) * workload.N < 2 * sms

    def threads(config: Config) -> int:
        return WARP * int(config["NUM_WARPS"])

    def sums(config: Config) -> float:
        """That a thread has: one for each output, or for each product of a step."""
        made = int(config["BLOCK_N"]) * int(config["BLOCK_CO"]) / threads(config)
        return made if _multiplies(config) else made * int(config["BLOCK_CI"])

    def programs(config: Config) -> int:
        return blocks(workload.N, int(config["BLOCK_N"])) * blocks(
            workload.Co, int(config["BLOCK_CO"])
        )

    return Space(
        knobs=(
            Knob("LAUNCHES", (1, 2), 1 if few else 2),
            Knob("BLOCK_N", images, 1 if few else nearest(images, 32)),
            Knob("BLOCK_CO", outputs, nearest(outputs, 16 if few else 64)),
            Knob("BLOCK_CI", inputs, nearest(inputs, 128 if few else deepest)),
            Knob("PRECISION", words, words[-1]),
            Knob("NUM_WARPS", (4, 8), 4),
        ),
        constraints=(
            Constraint(
                "a launch pools one image", lambda c: c["LAUNCHES"] == 2 or c["BLOCK_N"] == 1
            ),
            Constraint("sums fit registers", lambda c: sums(c) <= 64),
            Constraint("warps have work", lambda c: sums(c) >= 4 or c["NUM_WARPS"] == 4),
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
            Constraint("SMs have work", lambda c: programs(c) >= fill // int(c["LAUNCHES"])),
            Constraint(
                "one launch reads an image few times",
                lambda c: c["LAUNCHES"] == 2 or programs(c) <= 16 * sms,
            ),
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
) -> tl.tensor:
    """Of the pixels of the image at x, by channel, (BLOCK_CI,)."""
    acc = tl.zeros((BLOCK_P, BLOCK_CI), tl.float32)
    for block in range(triton.cdiv(P, BLOCK_P)):
        p = block * BLOCK_P + tl.arange(0, BLOCK_P)  # (BLOCK_P,)
        inside = (p < P)[:, None] & (ci < Ci)[None, :]
        acc += tl.load(x + p[:, None] * Ci + ci[None, :], mask=inside, other=0.0).to(tl.float32)
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
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    n = (tl.program_id(0) // BLOCKS_CO).to(tl.int64)
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    acc = tl.zeros((BLOCK_CI, BLOCK_CO), tl.float32)
    for block in range(triton.cdiv(Ci, BLOCK_CI)):
        ci = block * BLOCK_CI + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
        filters = tl.load(wt + ci[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :])
        mean = _mean(x + n * (P * Ci), ci, P, Ci, BLOCK_P, BLOCK_CI)
        acc += mean[:, None] * filters.to(tl.float32)
    total = activate(tl.sum(acc, axis=0) + tl.load(bias + co), ACTIVATION)  # (BLOCK_CO,)
    tl.store(y + n * Co + co, total.to(y.dtype.element_ty), mask=co < Co)


@triton.jit  # type: ignore[untyped-decorator]
def _head_pool(
    x: tl.tensor,
    means: tl.tensor,
    P: tl.constexpr,
    Ci: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_CI: tl.constexpr = triton.cdiv(Ci, BLOCK_CI)
    n = (tl.program_id(0) // BLOCKS_CI).to(tl.int64)
    ci = tl.program_id(0) % BLOCKS_CI * BLOCK_CI + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
    mean = _mean(x + n * (P * Ci), ci, P, Ci, BLOCK_P, BLOCK_CI)
    tl.store(means + n * Ci + ci, mean.to(means.dtype.element_ty), mask=ci < Ci)


@triton.jit  # type: ignore[untyped-decorator]
def _head_dense(
    means: tl.tensor,
    wt: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    N: tl.constexpr,
    Ci: tl.constexpr,
    Co: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    MULTIPLIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_CO: tl.constexpr,
    BLOCK_CI: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    await_previous(DEPENDENT)
    BLOCKS_CO: tl.constexpr = triton.cdiv(Co, BLOCK_CO)
    n0 = tl.program_id(0) // BLOCKS_CO * BLOCK_N
    n = tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    co = tl.program_id(0) % BLOCKS_CO * BLOCK_CO + tl.arange(0, BLOCK_CO)  # (BLOCK_CO,)
    if MULTIPLIES:
        acc = tl.zeros((BLOCK_N, BLOCK_CO), tl.float32)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_CI, BLOCK_CO), tl.float32)
    for block in range(triton.cdiv(Ci, BLOCK_CI)):
        ci = block * BLOCK_CI + tl.arange(0, BLOCK_CI)  # (BLOCK_CI,)
        filters = tl.load(wt + ci[:, None] * (BLOCKS_CO * BLOCK_CO) + co[None, :])
        inside = (n < N - n0)[:, None] & (ci < Ci)[None, :]
        at = n[:, None] * Ci + ci[None, :]
        mean = tl.load(means + n0.to(tl.int64) * Ci + at, mask=inside, other=0.0)
        if MULTIPLIES:
            acc = tl.dot(mean, filters, acc, input_precision=PRECISION)
        else:
            acc += mean.to(tl.float32)[:, :, None] * filters.to(tl.float32)[None, :, :]
    if not MULTIPLIES:
        acc = tl.sum(acc, axis=1)
    total = activate(acc + tl.load(bias + co)[None, :], ACTIVATION)  # (BLOCK_N, BLOCK_CO)
    inside = (n < N - n0)[:, None] & (co < Co)[None, :]
    at = n[:, None] * Co + co[None, :]
    tl.store(y + n0.to(tl.int64) * Co + at, total.to(y.dtype.element_ty), mask=inside)


def call(workload: Head, config: Config, target: Target) -> Call:
    """One launch, or one that pools and one that multiplies."""
    N, P, Ci, Co = workload.N, workload.H * workload.W, workload.Ci, workload.Co
    BLOCK_N, BLOCK_CO, BLOCK_CI = (int(config[f"BLOCK_{axis}"]) for axis in ("N", "CO", "CI"))
    rows, columns = blocks(Ci, BLOCK_CI) * BLOCK_CI, blocks(Co, BLOCK_CO) * BLOCK_CO
    pooled = {"P": P, "Ci": Ci, "BLOCK_P": min(cover(P), MOST_POOLED), "BLOCK_CI": BLOCK_CI}
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
        launches = (launch(_head, "x wt bias y", dense | pooled, N * blocks(Co, BLOCK_CO)),)
    else:
        programs = blocks(N, BLOCK_N) * blocks(Co, BLOCK_CO)
        launches = (
            launch(_head_pool, "x means", pooled, N * blocks(Ci, BLOCK_CI)),
            launch(
                _head_dense,
                "means wt bias y",
                dense
                | {"N": N, "BLOCK_N": BLOCK_N, "PRECISION": config["PRECISION"]}
                | {"MULTIPLIES": int(_multiplies(config))},
                programs,
                STAGES if _multiplies(config) else 1,
            ),
        )
    means = Tensor(name="means", shape=(N, Ci), dtype=workload.dtype)
    return Call(
        arguments=(
            Tensor(name="x", shape=(N, P, Ci), dtype=workload.dtype),
            Tensor(name="wt", shape=(rows, columns), dtype=workload.dtype),
            Tensor(name="bias", shape=(columns,), dtype="float32"),
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
    """wt (Ci,Co) and bias (Co,), padded with zeros to whole blocks."""
    wt, bias = weights
    BLOCK_CO, BLOCK_CI = int(config["BLOCK_CO"]), int(config["BLOCK_CI"])
    return padded(wt, BLOCK_CI, BLOCK_CO), padded(bias, BLOCK_CO)


def _multiplies(config: Config) -> bool:
    """Whether the dense layer is a product of matrices."""
    return config["LAUNCHES"] == 2 and int(config["BLOCK_N"]) >= LEAST_ROWS


def _staged_bytes(workload: Head, config: Config) -> int:
    rows = int(config["BLOCK_N"]) + int(config["BLOCK_CO"])
    return STAGES * rows * int(config["BLOCK_CI"]) * ITEM_BYTES[workload.dtype]
