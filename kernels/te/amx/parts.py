"""A float32 as the sum of three bfloat16, of which the tile unit makes products.

Maths   x = x0 + x1 + x2, each part what the ones before it left, rounded to 8 bits; |x1| is at most
        2**-9 |x|, |x2| at most 2**-18 |x|, and nothing is left. Of the nine products of the parts of
        two numbers six are made, PRODUCTS; the three others come to 2**-26 of the whole, a quarter
        of what rounding it to float32 may take.
Limits  finite numbers. The tile unit takes a bfloat16 below 2**-126 for 0, so that numbers below
        2**-108 lose bits.
Source  own; the scheme is that of Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial
        Intelligence Datatype For Higher-Precision Computations", 2019.
"""

from __future__ import annotations

import numpy as np

from kernels.reference import Array
from kernels.te.llvm.code import Code

PARTS = 3
# (part of x, part of wt), small ones first; from one to the next one of the two is as it was.
PRODUCTS = ((0, 2), (0, 1), (1, 1), (1, 0), (2, 0), (0, 0))
HALF, UPPER = 0x8000, 0xFFFF0000  # of the last bit that is kept; the bits that are


def parts(values: Array) -> Array:
    """(3, ...) uint16: the bits of the parts of (...) float32."""
    found, left = [], values.astype(np.float32)
    for _ in range(PARTS):
        part = (left.view(np.uint32) + np.uint32(HALF)) & np.uint32(UPPER)
        found.append((part >> 16).astype(np.uint16))
        left = left - part.view(np.float32)
    return np.stack(found)


def store_parts(code: Code, pair: tuple[str, str], places: tuple[str, ...]) -> None:
    """Lines that store the parts of two vectors, one behind the other, each at one of the places."""
    ints, halves = f"<{code.lanes} x i32>", f"<{2 * code.lanes} x i16>"
    odd = ", ".join(f"i32 {2 * lane + 1}" for lane in range(2 * code.lanes))
    left = pair
    for number, place in enumerate(places):
        rounded = []
        for value in left:
            bits = code.let(f"bitcast {code.vector} {value} to {ints}")
            raised = code.let(f"add {ints} {bits}, splat (i32 {HALF})")
            rounded.append(code.let(f"and {ints} {raised}, splat (i32 {UPPER - (1 << 32)})"))
        one, other = (code.let(f"bitcast {ints} {bits} to {halves}") for bits in rounded)
        upper = code.let(
            f"shufflevector {halves} {one}, {halves} {other}, <{2 * code.lanes} x i32> <{odd}>"
        )
        code.lines.append(f"store {halves} {upper}, ptr {place}, align 2")
        if number < PARTS - 1:
            wide = [code.let(f"bitcast {ints} {bits} to {code.vector}") for bits in rounded]
            first, second = map(code.subtract, left, wide)
            left = (first, second)
