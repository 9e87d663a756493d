"""Strassen's product on several levels: its steps, done with numbers, and its loops."""

from __future__ import annotations

import re
from itertools import product as every

import numpy as np
import pytest
import tvm

from kernels import kernel
from kernels.te.avx import strassen
from kernels.te.avx.strassen.pixels import Pixels, factors, heights_of
from kernels.te.avx.strassen.steps import FACTORS, PRODUCTS, Steps, Tile
from kernels.workload import Pointwise
from targets import machines

LANES = 2
LOOP = re.compile(r"^(\.L\w+):[^\n]*\n((?:(?!^\.L\w+:).*\n)*?)\s+j\w+\s+\1$", re.MULTILINE)


class Numbers:
    """What `kernels.te.llvm.code.Code` says in instructions."""

    add, subtract = np.add, np.subtract


def group(x: list[np.ndarray], wt: list[np.ndarray], before: list[np.ndarray]) -> list[np.ndarray]:
    """y11, y12, y21 and y22 by seven products, in the order of their factors."""
    lower = len(before[2])
    p1, p2, p3, p4, p5, p6, p7 = (one @ other for one, other in zip(x, wt, strict=True))
    u = p1 + p3
    v = u[:lower] + p4[:lower]
    sums = [p1 + p2, u + p6 + p7, v + p5[:lower], v + p6[:lower]]
    return [one + other for one, other in zip(sums, before, strict=True)]


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("pixels", [8, 9, 10, 11, 12, 13, 14, 15, 29])
def test_steps_make_the_product(levels: int, pixels: int) -> None:
    parts, depth, columns = 1 << levels, 3, 2 * LANES
    rng = np.random.default_rng(pixels)
    x, wt = (
        rng.integers(-9, 9, shape).astype(float)
        for shape in ((pixels, parts * depth), (parts * depth, parts * columns))
    )
    heights = heights_of(pixels, levels)
    tile = Tile(
        heights=heights,
        vectors=columns // LANES,
        depth=depth,
        x=0,
        s=(depth, 100),
        columns=columns,
        y=(1000, 1),
        unrolled=1,
        ahead=0,
        activation="none",
    )
    steps = Steps(tile, LANES)
    firsts = np.cumsum([0, *heights])

    def vector(register_tile: int, row: int, part: int) -> np.ndarray:
        return x[firsts[register_tile] + row, part * depth :][:depth]

    made = [
        np.array([one.vector(0, row, 0) for row in range(one.heights[0])])
        for one in factors(Numbers(), Pixels(heights, vector))
    ]
    assert len(made) == PRODUCTS**levels
    basis = list(strassen.basis(wt, levels))

    def weights(at: int, less: tuple[int, ...]) -> np.ndarray:
        if not less:
            return basis[at // (depth * columns)]
        first, *others = less
        return weights(at, tuple(others)) - weights(at + first, tuple(others))

    cell = tile.cells * LANES  # elements of a register tile
    memory = np.full((steps.memory // tile.cells, heights[0], columns), np.nan)
    memory[steps.zeros.at // tile.cells :][:4] = 0
    y = np.full((pixels, parts * columns), np.nan)
    for (kind, *sizes), given in steps.found:
        if kind == "sum":
            into, one, other = (at // cell for at in given)
            count = sizes[0] // tile.cells
            memory[into : into + count] = memory[one : one + count] + memory[other : other + count]
        elif kind == "rest":
            at, sums, bias = given
            row, column = at // 1000, at % 1000 * columns
            assert bias == column
            y[row : row + sizes[0], column : column + columns] = memory[sums // cell, : sizes[0]]
        else:
            upper, lower, differences = sizes
            before, into, s, at, _, *less = given
            assert len(less) == differences
            rows = (upper, upper, lower, lower)
            there = [memory[before // cell + place, :high] for place, high in enumerate(rows)]
            first, quarter = s // 100, depth * columns
            of_weights = [
                weights(at + block * quarter, tuple(less))
                - (0 if other is None else weights(at + other * quarter, tuple(less)))
                for block, other in FACTORS
            ]
            of_pixels = made[first : first + PRODUCTS]
            for place, sums in enumerate(group(of_pixels, of_weights, there)):
                memory[into // cell + place, : rows[place]] = sums
    np.testing.assert_array_equal(y, x @ wt)


def test_no_sum_of_a_loop_is_in_memory() -> None:
    target = machines("x86").DEVICES["znver4"]
    workload = Pointwise(N=1, H=14, W=14, Ci=512, Co=512)
    space = kernel("te.avx.pointwise_strassen").space(workload, target)
    tiles = {(c["LEVELS"], c["BLOCK_CO"]): c for c in space}
    for config in tiles.values():
        lowered = kernel("te.avx.pointwise_strassen").lower(workload, config, target)
        code = tvm.compile(lowered, target=target.tvm()).mod.inspect_source("asm")
        loops = [match[2] for match in LOOP.finditer(code) if "vfmadd" in match[2]]
        assert len(loops) >= PRODUCTS
        moved = [line for loop in loops for line in loop.splitlines() if "%rsp" in line]
        assert [line for line in moved if "mm" in line] == [], config


def test_heights_fit_above_one_another() -> None:
    for pixels, level in every(range(8, 120), range(1, 4)):
        found = heights_of(pixels, level)
        assert (sum(found), len(found)) == (pixels, 1 << level)
        assert max(found) - min(found) <= 1
        middle = len(found) // 2
        assert all(a >= b for a, b in zip(found[:middle], found[middle:], strict=True))
