"""What the Triton kernels share: the last step of every formula, and what sizes of tiles fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import triton
from triton import language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from kernels.reference import Array
from kernels.space import Config, Value
from kernels.triton.call import Constant
from kernels.workload import Conv, Depthwise, Separable
from targets.target import Target

WARP = 32
WIDEST_BYTES = 16  # of one load of a thread
# Sums that a thread can hold and still have registers for addresses and operands.
MOST_SUMS = 128
# Where one image has more elements, an offset in it would not fit 32 bits.
MOST_ELEMENTS = 1 << 30
MOST_WINDOW = 7  # whose taps are unrolled
OLDEST = 80  # architecture


@triton.jit  # type: ignore[untyped-decorator]
def activate(acc: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    if ACTIVATION != "none":
        acc = tl.maximum(acc, 0.0)
    if ACTIVATION == "relu6":
        acc = tl.minimum(acc, 6.0)
    return acc


@triton.jit  # type: ignore[untyped-decorator]
def rounded(acc: tl.tensor, dtype: tl.constexpr, ACTIVATION: tl.constexpr) -> tl.tensor:
    """`acc` as `dtype`, activated. The other way round is the same, as the limits are numbers of
    any dtype, but takes one instruction for each float16 instead of one for two.
    """
    value = acc.to(dtype)
    if ACTIVATION != "none":
        value = tl.maximum(value, tl.full((), 0.0, dtype))
    if ACTIVATION == "relu6":
        value = tl.minimum(value, tl.full((), 6.0, dtype))
    return value


# On sm_90 and later a kernel may be launched ahead of the end of the one before it, so that its
# start is hidden behind that one's work. Memory is still used in the order of the launches:
# - Every program waits before it reads or writes what a launch may have written or may still read;
#   weights, which none writes, it may load before. The wait is over when the launch before has
#   ended and all that it wrote is visible. That launch had waited for the one before it, so that
#   every earlier launch has ended, too.
# - What TVM compiles is launched in the ordinary way: it waits for everything before it, and counts
#   as the launch before like any other.
# The wait comes first and only then may the next launch start, which it does when all programs of
# this one are past the wait: each has its registers, shared and tensor memory by then, and at most
# one launch stands by. The other way round a queue of launches could wait on the SMs, and take from
# those that work what their programs need.
@triton.jit  # type: ignore[untyped-decorator]
def await_previous(DEPENDENT: tl.constexpr) -> None:
    """What a kernel begins with; DEPENDENT says whether it may be launched ahead. Else nothing."""
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()


def on_gpu(target: Target) -> bool:
    """Whether Triton makes good code for `target`: not before Ampere, where it spills."""
    return target.kind == "cuda" and target.gpu.capability >= OLDEST


def cover(size: int) -> int:
    """The least power of two from `size` up."""
    return 1 << (size - 1).bit_length()


def choices(wanted: Iterable[int], size: int, least: int = 1) -> tuple[int, ...]:
    """Those of the blocks `wanted` that are not wider than `size` needs, at least the smallest."""
    most = max(cover(size), least)
    return tuple(block for block in wanted if block <= most) or (min(wanted),)


def nearest(values: tuple[int, ...], wanted: int) -> int:
    """The one of `values` that is nearest to `wanted`, the smaller of two."""
    return min(values, key=lambda value: abs(value - wanted))


def filling(
    wanted: Iterable[Mapping[str, Value]],
    choices: Mapping[str, tuple[int, ...]],
    programs: Callable[[Config], int],
    sms: int,
) -> Config:
    """The first of `wanted` that gives every SM a program, or else the last.

    choices  of some knobs: the one nearest to what is wanted is taken
    """
    for config in wanted:
        found = {
            name: nearest(choices[name], int(value)) if name in choices else value
            for name, value in config.items()
        }
        if programs(found) >= sms:
            break
    return found


def window(workload: Conv | Depthwise | Separable) -> dict[str, Constant]:
    """The sizes of a window and of the images it moves over, as the kernels call them."""
    names = ("Hi", "Wi", "Ho", "Wo", "K", "stride")
    top, _, left, _ = workload.pad
    return {name: getattr(workload, name) for name in names} | {"top": top, "left": left}


def precisions(dtype: str, target: Target) -> tuple[str, ...]:
    """How products of `dtype` are made, so that results are those of `dtype`.

    "ieee" is exact; for float32 it leaves tensor cores aside. "tf32x3" has each factor as a sum of
    two TF32 numbers and leaves out only the product of the small ones, 2**-22 of the whole. Plain
    "tf32" keeps 11 bits of each factor, results are as coarse as float16's: the kernels take the
    word, but no space offers it and no float32 workload would pass its check with it.
    """
    if dtype == "float32" and target.gpu.tensor_tf32_flops:
        return ("ieee", "tf32x3")
    return ("ieee",)


def padded(array: Array, *blocks: int) -> Array:
    """`array` with zeros behind its last axes, each up to a multiple of its block."""
    missing = [
        -size % block for size, block in zip(array.shape[-len(blocks) :], blocks, strict=True)
    ]
    before = [(0, 0)] * (array.ndim - len(blocks))
    return np.ascontiguousarray(np.pad(array, [*before, *((0, more) for more in missing)]))
