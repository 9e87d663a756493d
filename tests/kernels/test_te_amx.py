"""Kernels on tile registers: right with the unit in software, which every machine has, and exact.

`test_te` runs them on the unit itself where the machine has one.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from test_te import LOOP, candidates, check, worst_error

from kernels import kernel, kernels_for, least_flops
from kernels.space import Config, blocks
from kernels.te.amx import pieces, product
from kernels.te.tasks import task_pixels
from kernels.workload import ACTIVATIONS, Depthwise, Pointwise, Separable, Workload, flops
from targets import x86
from targets.target import Target

SOURCE = Path(__file__).with_name("tile_unit.cc")
OURS = ("te.amx.pointwise", "te.amx.separable")
SAPPHIRE = x86.DEVICES["sapphirerapids"]
POINTWISE = Pointwise(N=1, H=14, W=14, Ci=512, Co=512)
SEPARABLE = Separable(N=1, Hi=14, Wi=14, C=512, Co=512, stride=1, pad=(1, 1, 1, 1))
# No machine: what is common to all that the project supports, beside a tile unit.
TARGETS = [
    replace(target, features=target.features | x86.AMX)
    for target in (x86.DEVICES["x86-64-v3"], x86.DEVICES["x86-64-v4"])
    if x86.can_run(target)
]
ON_EACH = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.device)
SHAPES: list[Workload] = [
    # Registers that are full and others, in numbers that a tile divides and others.
    *(Pointwise(N=1, H=1, W=W, Ci=64, Co=48) for W in (1, 2, 16, 17, 31, 33, 49, 100)),
    *(Pointwise(N=1, H=7, W=7, Ci=Ci, Co=Co) for Ci, Co in ((32, 16), (96, 80), (128, 208))),
    Pointwise(N=3, H=5, W=7, Ci=32, Co=64),
    *(
        Separable(N=2, Hi=9, Wi=11, C=64, Co=80, stride=stride, pad=pad)
        for stride in (1, 2)
        for pad in ((1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 2))
    ),
    Separable(N=1, Hi=1, Wi=1, C=32, Co=16, stride=2, pad=(1, 1, 1, 1)),
    Separable(N=1, Hi=7, Wi=7, C=96, Co=112, stride=1, pad=(1, 1, 1, 1)),
    Separable(N=1, Hi=9, Wi=8, C=32, Co=112, K=2, stride=2, pad=(0, 1, 1, 1)),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The unit's functions, for all code that this process compiles."""
    path = tmp_path_factory.mktemp("unit") / "tile_unit.so"
    flags = ("-O2", "-std=c++17", "-Wall", "-Werror", "-ffp-contract=off", "-shared", "-fPIC")
    subprocess.run(["g++", *flags, SOURCE, "-o", path], check=True)
    return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


@pytest.fixture
def unit(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In place of the machine's; when a test is over no thread uses it any more."""
    monkeypatch.setattr(product, "UNIT", "@septune_unit_")
    yield
    assert library.septune_unit_in_use() == 0


@ON_EACH
@pytest.mark.parametrize("workload", SHAPES, ids=lambda workload: workload.key)
def test_every_shape_is_right(unit: None, workload: Workload, target: Target) -> None:
    """The default config, and some others drawn at random."""
    found = [one for one in candidates(workload, target, most=2) if one[0] in OURS]
    assert found
    for name, config in found:
        check(workload, name, config, target)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", OURS)
def test_activations(unit: None, name: str, activation: str) -> None:
    separable = Separable(N=1, Hi=5, Wi=5, C=32, Co=48, stride=1, pad=(1, 1, 1, 1))
    whole: Workload = separable.pointwise if "pointwise" in name else separable
    workload = replace(whole, activation=activation)
    check(workload, name, kernel(name).space(workload, TARGETS[0]).default, TARGETS[0])


@pytest.mark.parametrize(
    "tile", [(16, 16), (16, 32), (16, 48), (32, 16), (32, 32), (48, 16)], ids=str
)
@pytest.mark.parametrize("Co", [192, 208])
def test_every_tile_of_registers(unit: None, tile: tuple[int, int], Co: int) -> None:
    """192 channels are whole blocks, which tasks can share; of 208 some are left over."""
    workload = Pointwise(N=1, H=1, W=113, Ci=64, Co=Co)
    space = kernel("te.amx.pointwise").space(workload, TARGETS[0])
    of_tile = [c for c in space if (c["BLOCK_P"], c["BLOCK_CO"]) == tile]
    most_parts = max(of_tile, key=lambda config: int(config["PARTS"]))
    for config in (of_tile[0], of_tile[-1], most_parts):
        check(workload, "te.amx.pointwise", config, TARGETS[0])


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("wide", [1, 7, 14, 15, 49, 113])
def test_registers_read_no_pixel_behind_the_buffer(name: str, wide: int) -> None:
    """Of however many pixels a task has, all rows of its last register lie in the buffer."""
    separable = Separable(N=1, Hi=7, Wi=wide, C=32, Co=16, stride=1, pad=(1, 1, 1, 1))
    workload: Workload = separable.pointwise if "pointwise" in name else separable
    pixels = separable.pointwise.pixels

    def most(config: Config) -> int:
        if name == "te.amx.separable":
            return int(config["ROWS"]) * wide
        return min(task_pixels(separable.pointwise, config), pixels)

    tasks = {most(config): config for config in kernel(name).space(workload, SAPPHIRE)}
    for of_task, config in tasks.items():
        script = kernel(name).lower(workload, config, SAPPHIRE)["main"].script()
        [buffer] = re.findall(r"sblock_alloc_buffer\(\((\d+), (\d+)\)", script)
        assert int(buffer[1]) == 3 * 32 // 2 + 16
        for count in (of_task, (pixels - 1) % of_task + 1):
            registers = blocks(count, 16)
            assert registers * blocks(count, registers) <= int(buffer[0])


def test_three_pieces_are_the_number() -> None:
    rng = np.random.default_rng(0)
    magnitudes = 2.0 ** rng.integers(-60, 60, 10_000)
    values = (rng.standard_normal(10_000) * magnitudes).astype(np.float32)
    edges = np.float32([0, -0.0, 1, -1, 1 + 2**-23, 2 - 2**-23, 1 + 2**-8, 1 - 2**-24, 3e38])
    for numbers in (values, edges):
        widened = (pieces.split(numbers).astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(widened.astype(np.float64).sum(axis=0), numbers)
        _, second, third = np.abs(widened)
        assert (second <= 2.0**-8 * np.abs(numbers)).all()
        assert (third <= 2.0**-17 * np.abs(numbers)).all()


def test_products_that_are_left_out_are_the_smallest() -> None:
    """By the order of magnitude of what each piece is at most."""
    made = {one + other for one, other in pieces.PRODUCTS}
    left = {
        one + other
        for one in range(pieces.PIECES)
        for other in range(pieces.PIECES)
        if (one, other) not in pieces.PRODUCTS
    }
    assert len(set(pieces.PRODUCTS)) == len(pieces.PRODUCTS) == 6
    assert max(made) < min(left)


@ON_EACH
def test_sums_err_no_more_than_those_of_multiply_adds(unit: None, target: Target) -> None:
    workload = Pointwise(N=1, H=7, W=7, Ci=512, Co=128, activation="none")

    def error(name: str) -> float:
        return worst_error(workload, name, kernel(name).space(workload, target).default, target)

    multiply_adds, tiles = error("te.avx.pointwise"), error("te.amx.pointwise")
    assert tiles <= multiply_adds


@pytest.mark.parametrize("name", OURS)
def test_loop_has_six_products_and_as_few_loads_as_can_be(name: str) -> None:
    """Compiled for the machine: 14 loads for 24 products, and sums stay in registers."""
    workload: Workload = POINTWISE if "pointwise" in name else SEPARABLE
    config = kernel(name).space(workload, SAPPHIRE).default | {"BLOCK_P": 32, "BLOCK_CO": 32}
    lowered = kernel(name).lower(workload, config, SAPPHIRE)
    code = tvm.compile(lowered, target=SAPPHIRE.tvm()).mod.inspect_source("asm")
    loops = [match[2] for match in LOOP.finditer(code)]
    hot = max(loops, key=lambda loop: loop.count("tdpbf16ps"))
    found = Counter(re.findall(r"^\s+(t[a-z]\w+)", hot, re.MULTILINE))
    assert found == {"tdpbf16ps": 24, "tileloadd": 14}
    assert not re.search(r"\(%r[sb]p", hot)


def test_others_do_what_it_cannot() -> None:
    for workload in (
        replace(POINTWISE, Ci=48),
        replace(POINTWISE, Co=40),
        replace(POINTWISE, dtype="float16"),
        replace(SEPARABLE, C=48),
    ):
        assert set(kernels_for(workload, SAPPHIRE)).isdisjoint(OURS)
    for device in ("icelake-server", "znver5", "x86-64-v3"):
        assert set(kernels_for(POINTWISE, x86.DEVICES[device])).isdisjoint(OURS)
    assert set(OURS) <= {
        *kernels_for(POINTWISE, SAPPHIRE),
        *kernels_for(SEPARABLE, x86.DEVICES["graniterapids"]),
    }


def test_six_products_take_three_eighths_of_the_time() -> None:
    depthwise: Depthwise = SEPARABLE.depthwise
    assert least_flops("te.amx.pointwise", POINTWISE) == flops(POINTWISE) * 3 // 8
    expected = flops(depthwise) + flops(POINTWISE) * 3 // 8
    assert least_flops("te.amx.separable", SEPARABLE) == expected
