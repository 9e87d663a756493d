"""Pointwise convolution, NHWC, x86: the matrix product of pixels and channels.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p a pixel of the batch
Shapes  x (P,Ci)  wt (Co/BLOCK_CO,Ci,BLOCK_CO)  bias (Co/BLOCK_CO,BLOCK_CO)  y (P,Co)
Types   float32.
Tiling  Register tiles of `kernels.te.avx.product`. A task has CHUNK rows of such tiles, and one of
        PARTS of the output channels.
Limits  Ci and Co are whole vectors.
Source  own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from textwrap import indent

from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te import product as packing
from kernels.te.avx import product
from kernels.te.avx.product import Task
from kernels.te.llvm.code import isa_of
from kernels.te.llvm.script import parallel
from kernels.te.tasks import task_pixels, together
from kernels.te.tile import divisors, on_cpu, spread
from kernels.workload import Pointwise, Workload
from targets.target import Target

TASK = """
if vh < {last}:
{whole}
else:
{rest}
"""
TASKS = 8  # by default at least, so that several cores have work
MOST_CHUNKS = 12


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Pointwise)
        and target.kind == "x86"
        and on_cpu(workload, target)
        and workload.Ci % isa_of(target).lanes(workload.dtype) == 0
        and workload.Co % isa_of(target).lanes(workload.dtype) == 0
    )


def space(workload: Pointwise, target: Target) -> Space:
    """Register tiles, and how many of them a task has."""
    return in_tasks(workload, {0: workload}, *product.knobs(workload, target))


def in_tasks(
    workload: Pointwise,
    factors: Mapping[int, Pointwise],
    knobs: Sequence[Knob],
    constraints: Sequence[Constraint],
) -> Space:
    """The space of these knobs of tiles and CHUNK and PARTS.

    factors  what is multiplied at once, by LEVELS, or 0: tasks share its channels
    """
    defaults = {knob.name: knob.default for knob in knobs}
    rows = next(knob.choices for knob in knobs if knob.name == "BLOCK_P")
    heights = {int(row) << level for row in rows for level in factors}
    chunks = {height: _chunks(blocks(workload.pixels, height)) for height in heights}

    def high(config: Config) -> int:
        return int(config["BLOCK_P"]) * together(config)

    def last_is_a_tile(config: Config) -> bool:
        last = (workload.pixels - 1) % task_pixels(workload, config) + 1
        return last >= together(config)

    usual, factor = high(defaults), factors[int(defaults.get("LEVELS", 0))]
    parts, columns = product.parts(factor), blocks(factor.Co, int(defaults["BLOCK_CO"]))
    split = max(count for count in parts if columns % count == 0)
    most = blocks(workload.pixels, usual) * split // TASKS
    shared = [chunk for chunk in chunks[usual] if chunk <= most]
    return Space(
        knobs=(
            *knobs,
            Knob(
                "CHUNK",
                tuple(sorted(set().union(*chunks.values()))),
                max(shared, default=chunks[usual][0]),
            ),
            Knob("PARTS", parts, split),
        ),
        constraints=(
            *constraints,
            Constraint("even chunks", lambda c: c["CHUNK"] in chunks[high(c)]),
            Constraint("no low rest", last_is_a_tile),
            product.whole_parts(factors),
        ),
    )


def _chunks(tiles: int) -> tuple[int, ...]:
    """Sizes of a task: divisors, and what so many tiles are in halves, quarters and so on."""
    halves = {blocks(tiles, 1 << power) for power in range(tiles.bit_length())}
    return tuple(sorted({*spread(divisors(tiles), MOST_CHUNKS), *halves}))


def lower(workload: Pointwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    codes: dict[str, str] = {}
    calls = partial(product.calls, workload, config, target, codes)
    return scheduled(workload, config, codes, calls, product.shapes(workload, config))


def scheduled(
    workload: Pointwise,
    config: Config,
    codes: dict[str, str],
    calls: Callable[[Task], str],
    shapes: Mapping[str, Sequence[int]],
    *,
    buffers: str = "",
) -> IRModule:
    """That function, whose tasks are made of such calls.

    shapes   of wt and bias
    buffers  statements: what the calls need of their own
    """
    P, parts, pixels = workload.pixels, int(config["PARTS"]), task_pixels(workload, config)
    last, left = divmod(P - 1, pixels)
    following = f"T.min((vh + 1) * {pixels}, {max(0, P - pixels)}) * {workload.Ci} + {{offset}}"
    whole, rest = (
        indent(
            calls(
                Task(
                    pixels=count,
                    first=f"vh * {pixels}",
                    parts=parts,
                    part="vp",
                    x=f"T.address_of(x[vh * {pixels} + {{pixel}}, 0])",
                    following=f'x.access_ptr("r", offset={following})',
                    amount=min(pixels, P) * workload.Ci,
                ),
            ),
            " " * 4,
        )
        for count in (pixels, left + 1)
    )
    return parallel(
        {"x": (P, workload.Ci), **shapes, "y": (P, workload.Co)},
        workload.dtype,
        {"vh": ("chunk", last + 1), "vp": ("part", parts)},
        buffers + TASK.format(last=last, whole=whole, rest=rest),
        codes,
    )


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) -> (Co/BLOCK_CO,Ci,BLOCK_CO) and bias likewise, channels padded with zeros."""
    return packing.packed(workload, config, *weights)
