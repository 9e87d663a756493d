"""A float32 as the sum of three bfloat16, of which the tile unit makes products.

Maths   x = x0 + x1 + x2, each piece what the ones before it left, rounded to 8 bits: |x1| is at
        most 2**-8 |x|, |x2| at most 2**-17 |x|, and nothing is left. Of the nine products of the
        pieces of two numbers six are made, PRODUCTS; the three others come to 2**-24 of the whole
        at most and to 2**-27 as a rule, where rounding it to float32 takes 2**-24 and 2**-25.
Limits  finite numbers up to 2**127. The tile unit takes what is below 2**-126 for 0: of numbers
        below 2**-103 bits are lost, and of products whose smaller ones come to that.
Source  own; the scheme is that of Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial
        Intelligence Datatype For Higher-Precision Computations", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.reference import Array
from kernels.te.llvm.code import Code
from kernels.te.llvm.depthwise import Outputs
from kernels.te.tile import LINE_BYTES

PIECES = 3
# (piece of x, piece of wt), the largest last; from one to the next one of the two is as it was.
PRODUCTS = ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0))
HALF, UPPER = 0x8000, 0xFFFF0000  # of the last bit that is kept; the bits that are
DEEP = 32  # channels of a piece in a cache line
LINE = LINE_BYTES // 4  # float32 in its place
ROWS = 16  # pixels that a tile register reads at most


def split(values: Array) -> Array:
    """(3, ...) uint16: the bits of the pieces of (...) float32."""
    found, left = [], values.astype(np.float32)
    for _ in range(PIECES):
        piece = (left.view(np.uint32) + np.uint32(HALF)) & np.uint32(UPPER)
        found.append((piece >> 16).astype(np.uint16))
        left = left - piece.view(np.float32)
    return np.stack(found)


def pixels(channels: int, lanes: int) -> Outputs:
    """How pixels lie for the tile unit, in the place of as many float32.

    A line is DEEP channels of a piece; the lines of all pieces follow one another, and DEEP
    channels follow DEEP. Behind a pixel a line is free, so that the next one takes another place
    in L1.

    lanes  of a vector that is stored
    """
    among = DEEP // lanes
    vector = f"c // {among} * {PIECES * LINE} + c % {among} * {lanes // 2}"

    def store_one(code: Code, value: str, place: str) -> None:
        store(code, [value], place)

    return Outputs(PIECES * channels // 2 + LINE, vector, store_one, spare=ROWS - 1)


def store(code: Code, values: Sequence[str], place: str) -> None:
    """Lines that store the pieces of a vector, or of two side by side, the first at an address."""
    bits, halves = f"<{code.lanes} x i32>", f"<{2 * code.lanes} x i16>"
    count = code.lanes * len(values)
    upper = f"<{count} x i32> <{', '.join(f'i32 {2 * lane + 1}' for lane in range(count))}>"
    for piece in range(PIECES):
        numbers = [code.let(f"bitcast {code.vector} {value} to {bits}") for value in values]
        raised = [code.let(f"add {bits} {number}, splat (i32 {HALF})") for number in numbers]
        pairs = [code.let(f"bitcast {bits} {number} to {halves}") for number in raised]
        both = ", ".join(f"{halves} {pair}" for pair in (*pairs, "poison")[:2])
        short = code.let(f"shufflevector {both}, {upper}")
        address = code.behind(place, piece * LINE)
        code.lines.append(f"store <{count} x i16> {short}, ptr {address}, align 2")
        if piece < PIECES - 1:
            mask = f"splat (i32 {UPPER - (1 << 32)})"
            rounded = [code.let(f"and {bits} {number}, {mask}") for number in raised]
            wide = [code.let(f"bitcast {bits} {number} to {code.vector}") for number in rounded]
            values = [*map(code.subtract, values, wide)]
