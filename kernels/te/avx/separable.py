"""Depthwise convolution and the pointwise one behind it in one kernel, NHWC, x86.

Maths   z[n,ho,wo,c] = act(dw_bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                    * dw_wt[kh,kw,c])
        y[n,ho,wo,co] = act(bias[co] + sum_c z[n,ho,wo,c] * wt[c,co])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,C)  dw_wt (K*K,C)  dw_bias (C,)  wt (Co/BLOCK_CO,C,BLOCK_CO)
        bias (Co/BLOCK_CO,BLOCK_CO)  y (N*Ho*Wo,Co)
Types   float32.
Tiling  A task makes ROWS rows of one image, or one of PARTS of their output channels: first z, in
        tiles of BLOCK_HO x BLOCK_WO of `kernels.te.llvm.depthwise`, into a buffer of its own that
        stays in L2, then y in those of `kernels.te.avx.product`, which can bring the next task's
        rows of x meanwhile. With PARTS above 1 each of them computes z anew.
Limits  C and Co are whole vectors, K at most 3.
Source  own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import indent

from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space
from kernels.te import product as packing
from kernels.te.avx import pointwise, product
from kernels.te.avx.product import Task
from kernels.te.llvm import depthwise
from kernels.te.llvm.code import isa_of
from kernels.te.llvm.image import calls
from kernels.te.llvm.script import parallel
from kernels.te.tile import divisors, spread
from kernels.workload import ITEM_BYTES, Pointwise, Separable, Workload
from targets.target import Target

TASK = """
z = T.sblock_alloc_buffer(({count}, {size}), "{dtype}")
for h in range({heights}):
{depthwise}
{pointwise}
"""
MOST_ROWS = 4  # choices
HIGHEST = 8


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Separable)
        and pointwise.supports(workload.pointwise, target)
        and depthwise.supports(workload.depthwise, target)
    )


def space(workload: Separable, target: Target) -> Space:
    """Tiles of both parts; what a task makes between them takes at most half of L2."""
    factor = workload.pointwise
    return in_tasks(workload, {0: factor}, target, *product.knobs(factor, target))


def in_tasks(
    workload: Separable,
    factors: Mapping[int, Pointwise],
    target: Target,
    knobs: Sequence[Knob],
    constraints: Sequence[Constraint],
    *,
    pixel: int | None = None,
) -> Space:
    """The space of these knobs of the product's tiles and those of tasks and depthwise part.

    factors  what is multiplied at once, by LEVELS: tasks share its channels
    pixel    elements of z that one takes; by default its channels
    """
    Ho, row = workload.Ho, workload.Wo * (pixel or workload.C) * ITEM_BYTES[workload.dtype]
    fitting = [rows for rows in divisors(Ho) if 2 * rows * row <= target.cpu.l2_bytes] or [1]
    rows = spread(fitting, MOST_ROWS)
    high = tuple(count for count in divisors(Ho) if count <= HIGHEST)
    _, wide, _ = depthwise.space(workload.depthwise, target).knobs
    return Space(
        knobs=(
            Knob("ROWS", rows, rows[len(rows) // 2]),
            Knob("PARTS", product.parts(workload.pointwise), 1),
            Knob("BLOCK_HO", high, 1),
            Knob("BLOCK_WO", wide.choices[-2:], wide.choices[-1]),
            *knobs,
        ),
        constraints=(
            *constraints,
            Constraint("whole rows of tiles", lambda c: int(c["ROWS"]) % int(c["BLOCK_HO"]) == 0),
            Constraint(
                "code fits its cache",
                lambda c: int(c["BLOCK_HO"]) * int(c["BLOCK_WO"]) <= depthwise.MOST_OUTPUTS,
            ),
            product.whole_parts(factors),
        ),
    )


def lower(workload: Separable, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, dw_wt, dw_bias, wt, bias, y)."""
    codes: dict[str, str] = {}
    multiply = partial(product.calls, workload.pointwise, config, target, codes)
    shapes = product.shapes(workload.pointwise, config)
    return scheduled(workload, config, target, codes, multiply, shapes)


def scheduled(
    workload: Separable,
    config: Config,
    target: Target,
    codes: dict[str, str],
    multiply: Callable[[Task], str],
    shapes: Mapping[str, Sequence[int]],
    *,
    z: depthwise.Outputs | None = None,
    buffers: str = "",
) -> IRModule:
    """That function, whose tasks multiply by such calls.

    shapes   of wt and bias
    z        how it lies in its buffer; by default (ROWS*Wo,C)
    buffers  statements: what the calls need of their own
    """
    C, Co, Ho, Wo, image = workload.C, workload.Co, workload.Ho, workload.Wo, workload.depthwise
    z = z or depthwise.plain(image, target)
    lanes = isa_of(target).lanes(workload.dtype)
    rows, tile = int(config["ROWS"]), (int(config["BLOCK_HO"]), int(config["BLOCK_WO"]))
    heights, pixels, parts = rows // tile[0], rows * Wo, int(config["PARTS"])
    pixel_of_z = f"(({{row}} - vh * {rows}) * {Wo} + {{column}})"
    first = calls(
        image,
        lambda vertical, horizontal: depthwise.tile(image, target, z, vertical, horizontal),
        codes,
        tile=tile,
        row=f"vh * {heights} + h",
        each=C // lanes,
        y=f'z.access_ptr("w", offset={pixel_of_z} * {z.pixel} + {z.vector})',
        channel_of_x=f"c * {lanes}",
        wt=f"dw_wt[0, c * {lanes}]",
        bias=f"dw_bias[c * {lanes}]",
    )
    below = min(rows * workload.stride, workload.Hi)  # rows of x that the next task sees first
    start = (
        f"(vh + 1) * {rows * workload.stride} + {workload.K - workload.stride - workload.pad[0]}"
    )
    row_of_x = f"(vn * {workload.Hi} + T.min({start}, {workload.Hi - below})) * {workload.Wi * C}"
    second = multiply(
        Task(
            pixels=pixels,
            first=f"(vn * {Ho // rows} + vh) * {pixels}",
            parts=parts,
            part="vp",
            x=f'z.access_ptr("r", offset=({{pixel}}) * {z.pixel})',
            following=f'x.access_ptr("r", offset={row_of_x} + {{offset}})',
            amount=below * workload.Wi * C,
        )
    )
    task = TASK.format(
        count=pixels + z.spare,
        size=z.pixel,
        dtype=workload.dtype,
        heights=heights,
        depthwise=indent(first, " " * 4),
        pointwise=second,
    )
    return parallel(
        {
            "x": workload.x_shape,
            "dw_wt": (workload.K**2, C),
            "dw_bias": (C,),
            **shapes,
            "y": (workload.N * Ho * Wo, Co),
        },
        workload.dtype,
        {"vn": ("n", workload.N), "vh": ("chunk", Ho // rows), "vp": ("part", parts)},
        buffers + task,
        codes,
    )


def pack(workload: Separable, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """dw_wt (K,K,C) -> (K*K,C); wt (C,Co) -> (Co/BLOCK_CO,C,BLOCK_CO), bias likewise."""
    dw_wt, dw_bias, wt, bias = weights
    return (
        *depthwise.pack(workload.depthwise, config, (dw_wt, dw_bias)),
        *packing.packed(workload.pointwise, config, wt, bias),
    )
