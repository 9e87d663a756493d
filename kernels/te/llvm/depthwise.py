"""Depthwise convolution, NHWC, CPU.

Maths   y[n,ho,wo,c] = act(bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                 * wt[kh,kw,c])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,C)  wt (K*K,C)  bias (C,)  y (N,Ho,Wo,C)
Types   float32; float16 where the core computes in it.
Tiling  A task computes BLOCK_HO rows of one image and BLOCK_C of its channels, BLOCK_WO columns and
        a vector of channels at a time, without a loop and without a copy of the image: row by row
        of the input, and pixel by pixel in it, a vector is loaded once and multiplied into all sums
        that see it. A sum starts at its first pixel and is stored at its last, so that K - stride
        rows of outputs are in registers, and all taps where there are enough. Where there are not,
        and pixels stay in L1, a row of outputs is summed by one row of taps after the other.
Limits  C is whole vectors, K at most 3.
Source  own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space
from kernels.te.llvm.code import Code, isa_of
from kernels.te.llvm.image import Side, scheduled
from kernels.te.tile import LINE_BYTES, divisors, on_cpu
from kernels.workload import ITEM_BYTES, Depthwise, Workload
from targets.target import Target

MOST_TAPS = 9
MOST_OUTPUTS = 72  # of a tile: 6 KB of code, in one version for each side of the image
# A pixel, the bias, the bounds of ReLU6, and sums that start before others end.
OTHER_REGISTERS = 7
OTHERS_OF_A_ROW = 4  # a pixel, the bias and the bounds of ReLU6
# Pixels further apart take each other's place in L1, whose ways have 4 KB each.
NEAR_BYTES = 512


class Outputs(NamedTuple):
    """How outputs lie in memory.

    pixel   elements from one to the next
    vector  elements from a pixel to vector `c` of its channels, an expression
    store   lines that store a vector at an address
    spare   outputs behind the last that are read, too, and not used
    """

    pixel: int
    vector: str
    store: Callable[[Code, str, str], None]
    spare: int = 0


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Depthwise)
        and workload.K**2 <= MOST_TAPS
        and on_cpu(workload, target)
        and workload.C % isa_of(target).lanes(workload.dtype) == 0
    )


def space(workload: Depthwise, target: Target) -> Space:
    """Tiles whose sums and taps fit the registers."""
    lanes = isa_of(target).lanes(workload.dtype)
    registers = target.cpu.vector_registers
    if _sums_rows(workload, target):
        widest = registers - workload.K - OTHERS_OF_A_ROW
    else:
        held = workload.K**2 if _holds_taps(workload, target) else 0
        widest = (registers - held - OTHER_REGISTERS) // max(1, workload.K - workload.stride)
    rows = tuple(sorted({min(count, workload.Ho) for count in (1, 2, 4, 7, 8, 14)}))
    columns = tuple(sorted({min(count, workload.Wo, widest) for count in (2, 4, 6, 7, 8, 14)}))
    # Whole cache lines of each pixel, where they are whole: another task would load them again.
    whole = [lanes * count for count in divisors(workload.C // lanes)]
    item = ITEM_BYTES[workload.dtype]
    channels = tuple(count for count in whole if count * item % LINE_BYTES == 0) or (whole[-1],)
    return Space(
        knobs=(
            Knob("BLOCK_HO", rows, max(count for count in rows if count <= 7)),
            Knob("BLOCK_WO", columns, max(count for count in columns if count <= 7)),
            Knob("BLOCK_C", channels, channels[-1]),
        ),
        constraints=(
            Constraint(
                "code fits its cache",
                lambda c: int(c["BLOCK_HO"]) * int(c["BLOCK_WO"]) <= MOST_OUTPUTS,
            ),
        ),
    )


def lower(workload: Depthwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    lanes = isa_of(target).lanes(workload.dtype)
    outputs = plain(workload, target)
    return scheduled(
        workload,
        lambda vertical, horizontal: tile(workload, target, outputs, vertical, horizontal),
        tile=(int(config["BLOCK_HO"]), int(config["BLOCK_WO"])),
        channels=lanes,
        parts=workload.C // int(config["BLOCK_C"]),
        wt=(workload.K**2, workload.C),
        bias=(workload.C,),
    )


def pack(workload: Depthwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (K,K,C) -> (K*K,C), bias (C,)."""
    wt, bias = weights
    return wt.reshape(-1, workload.C), bias.astype(workload.dtype)


def _holds_taps(workload: Depthwise, target: Target) -> bool:
    """Whether taps stay in registers, and are not loaded for every product."""
    return target.cpu.vector_registers > workload.K**2 + OTHER_REGISTERS


def _sums_rows(workload: Depthwise, target: Target) -> bool:
    """Whether outputs are summed row by row, each pixel being loaded for each row of taps."""
    near = workload.C * ITEM_BYTES[workload.dtype] <= NEAR_BYTES
    return near and not _holds_taps(workload, target)


def plain(workload: Depthwise, target: Target) -> Outputs:
    """As they are in y (N,Ho,Wo,C)."""
    lanes = isa_of(target).lanes(workload.dtype)
    return Outputs(workload.C, f"c * {lanes}", Code.store)


def tile(
    workload: Depthwise, target: Target, outputs: Outputs, vertical: Side, horizontal: Side
) -> tuple[str, str]:
    """Name and code of `int (y, x, wt, bias)`, which makes a tile."""
    code = Code(isa_of(target), workload.dtype)
    if _sums_rows(workload, target):
        _by_rows(code, workload, outputs, vertical, horizontal)
    else:
        hold = _holds_taps(workload, target)
        _by_pixels(code, workload, outputs, vertical, horizontal, hold=hold)
    return code.function(("ptr %y", "ptr %x", "ptr %wt", "ptr %bias"))


def _by_pixels(
    code: Code,
    workload: Depthwise,
    outputs: Outputs,
    vertical: Side,
    horizontal: Side,
    *,
    hold: bool,
) -> None:
    """Each pixel of the input is loaded once, for all outputs that see it.

    hold  all taps in registers
    """
    K, stride, C = workload.K, workload.stride, workload.C
    held = {tap: code.load_at("%wt", tap * C) for tap in range(K * K)} if hold else {}
    bias = code.load_at("%bias", 0)
    x, wt, rows_of_y = "%x", "%wt", ["%y"]
    row_of_x, row_of_y = code.hidden(C * workload.Wi), code.hidden(outputs.pixel * workload.Wo)
    sums: dict[tuple[int, int], str] = {}
    for i in vertical.inside(K, stride):
        for j in horizontal.inside(K, stride):
            value = code.load_at(x, (j - horizontal.before) * C)
            seen = [
                (ho, wo, kh * K + kw)
                for ho, kh in _above(i, vertical, workload)
                for wo, kw in _above(j, horizontal, workload)
            ]
            for ho, wo, tap in seen:
                factor = held[tap] if held else code.load_at(wt, tap * C)
                sums[ho, wo] = code.multiply_add(value, factor, sums.get((ho, wo), bias))
                if (i, j) == (_last(ho, vertical, workload), _last(wo, horizontal, workload)):
                    if ho == len(rows_of_y):
                        rows_of_y.append(code.advance(rows_of_y[-1], row_of_y))
                    done = code.activate(sums.pop((ho, wo)), workload.activation)
                    outputs.store(code, done, code.behind(rows_of_y[ho], wo * outputs.pixel))
            kept = [(ho, wo) for ho, wo, _ in seen if (ho, wo) in sums]
            pointers = (x, rows_of_y[-1], *(() if held else (wt,)))
            (x, rows_of_y[-1], *moved), values = code.step(pointers, [sums[at] for at in kept])
            [wt] = moved or [wt]
            sums.update(zip(kept, values, strict=True))
        x = code.advance(x, row_of_x)


def _by_rows(
    code: Code, workload: Depthwise, outputs: Outputs, vertical: Side, horizontal: Side
) -> None:
    """A row of outputs after the other, of which a row of taps in registers makes a part."""
    K, stride, C = workload.K, workload.stride, workload.C
    bias = code.load_at("%bias", 0)
    first, wt, y = "%x", "%wt", "%y"  # the first row under an output that is inside the image
    row_of_x, row_of_y = code.hidden(C * workload.Wi), code.hidden(outputs.pixel * workload.Wo)
    inside = vertical.inside(K, stride)
    for ho in range(vertical.outputs):
        x, sums = first, [bias] * horizontal.outputs
        for kh in (kh for kh in range(K) if ho * stride + kh in inside):
            taps = [code.load_at(wt, (kh * K + kw) * C) for kw in range(K)]
            for j in horizontal.inside(K, stride):
                value = code.load_at(x, (j - horizontal.before) * C)
                for wo, kw in _above(j, horizontal, workload):
                    sums[wo] = code.multiply_add(value, taps[kw], sums[wo])
                (x, wt, y), sums = code.step((x, wt, y), sums)
            x = code.advance(x, row_of_x)
        for wo, value in enumerate(sums):
            done = code.activate(value, workload.activation)
            outputs.store(code, done, code.behind(y, wo * outputs.pixel))
        y = code.advance(y, row_of_y)
        for i in range(ho * stride, (ho + 1) * stride):
            if i in inside:
                first = code.advance(first, row_of_x)


def _above(pixel: int, side: Side, workload: Depthwise) -> Iterator[tuple[int, int]]:
    """Each output that a pixel is under, ascending, and the tap that it is multiplied with."""
    for k in reversed(range(workload.K)):
        output, rest = divmod(pixel - k, workload.stride)
        if rest == 0 and 0 <= output < side.outputs:
            yield output, k


def _last(output: int, side: Side, workload: Depthwise) -> int:
    """The last pixel inside the image under an output."""
    inside = side.inside(workload.K, workload.stride)
    return min(output * workload.stride + workload.K, inside.stop) - 1
