"""The pipeline model: the right loop, the model's own peak, cycles as executions go."""

from __future__ import annotations

import os
import shutil

import pytest
import tvm

from kernels import kernel
from kernels.workload import Pointwise, Separable, Workload
from targets import arm64, x86
from targets.target import Target
from tune import mca
from tune.emulator.instrument import Block
from tune.errors import SetupError

A76 = arm64.DEVICES["cortex-a76"]
ZEN3, ZEN4, XEON = (x86.DEVICES[name] for name in ("znver3", "znver4", "sapphirerapids"))
SEPARABLE = Separable(N=1, Hi=14, Wi=14, C=64, Co=64, stride=1, pad=(1, 1, 1, 1))

# fmla v0.4s, v30.4s, v31.s[0] and so on, eight of them; then add x0, x0, #1.
SUMS = tuple(0x4F9F13C0 + register for register in range(8))
ADD = 0x91000400

ASSEMBLY = """
main:
	mov	x8, #10
.LBB0_1:
	mov	x9, #20
	fmla	v0.4s, v1.4s, v2.s[0]
	fmla	v3.4s, v1.4s, v2.s[0]
	fmla	v4.4s, v1.4s, v2.s[0]
.LBB0_2:                                // =>  This Inner Loop Header: Depth=2
	.loc	1 2 3
	ldr	q1, [x1], #16                   // a comment
	fmla	v0.4s, v1.4s, v2.s[0]
	fmla	v3.4s, v1.4s, v2.s[1]
	subs	x9, x9, #1
	b.ne	.LBB0_2
	cbz	x8, .LBB0_4
.LBB0_3:
	ldr	x3, [x3]
	cbnz	x3, .LBB0_3
	subs	x8, x8, #1
	b.ne	.LBB0_1
.LBB0_4:
	ret
"""


def assembly(name: str, workload: Workload, target: Target) -> str:
    """Of a kernel's default."""
    config = kernel(name).space(workload, target).default
    lowered = kernel(name).lower(workload, config, target)
    printed: str = tvm.compile(lowered, target=target.tvm()).mod.inspect_source("asm")
    return printed


@pytest.fixture(autouse=True)
def llvm() -> None:
    if shutil.which("llvm-mca-19") is None and os.environ.get("CI") != "true":
        pytest.skip("the pipeline model needs llvm-mca")


def test_the_hot_loop_is_the_innermost_with_most_multiply_adds() -> None:
    (loop,) = mca.hot_loops(ASSEMBLY, A76)
    assert loop.product
    assert loop.code == (
        "ldr\tq1, [x1], #16",
        "fmla\tv0.4s, v1.4s, v2.s[0]",
        "fmla\tv3.4s, v1.4s, v2.s[1]",
        "subs\tx9, x9, #1",
        "b.ne\t.LBB0_2",
    )
    assert (loop.core, loop.instructions, loop.multiply_adds) == ("cortex-a76", 5, 2)
    assert 0 < loop.share <= 1
    assert loop.share == loop.multiply_adds / (loop.cycles * loop.peak)


def test_two_sums_wait_for_each_other_and_many_do_not() -> None:
    (few,) = mca.hot_loops(ASSEMBLY, A76)
    body = "".join(f"\tfmla\tv{i}.4s, v30.4s, v31.s[0]\n" for i in range(16))
    (many,) = mca.hot_loops(f".L1:\n{body}\tsubs\tx9, x9, #1\n\tb.ne\t.L1\n", A76)
    assert many.share > 0.9 > 2 * few.share


@pytest.mark.parametrize("target", [A76, ZEN3, ZEN4], ids=lambda target: target.device)
def test_a_generated_kernel_has_a_hot_loop(target: Target) -> None:
    workload = Pointwise(N=1, H=14, W=14, Ci=128, Co=128)
    (loop,) = mca.hot_loops(assembly("te.pointwise", workload, target), target)
    assert loop.product
    assert loop.multiply_adds >= 8
    assert 0.1 < loop.share <= 1


def test_two_layers_in_one_have_two() -> None:
    product, window = mca.hot_loops(assembly("te.avx.separable", SEPARABLE, ZEN4), ZEN4)
    assert (product.product, window.product) == (True, False)
    assert any("vbroadcastss" in line for line in product.code)
    assert not any("vbroadcastss" in line for line in window.code)
    assert 0.5 < window.share <= 1


def test_products_in_tile_registers_are_counted_and_not_timed() -> None:
    product, window = mca.hot_loops(assembly("te.amx.separable", SEPARABLE, XEON), XEON)
    tiles = [line for line in product.code if line.startswith("tdpbf16ps")]
    assert product.tile_products == len(tiles) > 0
    assert window.tile_products == 0


def test_code_without_a_multiply_add_is_told() -> None:
    with pytest.raises(ValueError, match="1 innermost loops, none with a vector multiply-add"):
        mca.hot_loops(".L1:\n\tsubs\tx9, x9, #1\n\tb.ne\t.L1\n", A76)


def test_a_better_core_has_a_higher_peak() -> None:
    assert mca.peak(arm64.DEVICES["neoverse-v1"]) > mca.peak(A76) > 0.9


def test_cycles_are_proportional_to_executions_and_sum_over_blocks() -> None:
    sums, add = Block(1000, SUMS * 4), Block(1000, (ADD,) * 32)
    alone = mca.cycles([sums], A76)
    assert alone == pytest.approx(1000 * 32 / mca.peak(A76), rel=0.1)
    assert mca.cycles([sums._replace(executions=3000)], A76) == pytest.approx(3 * alone)
    together = mca.cycles([sums, add], A76)
    assert together == pytest.approx(alone + mca.cycles([add], A76))


def test_without_the_tool_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mca._newest.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SetupError, match="apt-get install llvm-19"):
        mca.hot_loops(ASSEMBLY, A76)
