"""What Triton programs ask for, counted by hand for kernels with loops, masks and products."""

from __future__ import annotations

from typing import Any

import pytest

from tune.ttir import work

triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def products(  # type: ignore[no-untyped-def]
    x, wt, y, M: tl.constexpr, K: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr
):
    i, k = tl.arange(0, BLOCK), tl.arange(0, 32)
    for tile in range(tl.program_id(0), tl.cdiv(M, BLOCK), PROGRAMS):
        m = tile * BLOCK + i
        acc = tl.zeros((BLOCK, BLOCK), tl.float32)
        for at in range(0, K, 32):
            a = tl.load(x + m[:, None] * K + (at + k)[None, :], mask=(m < M)[:, None], other=0.0)
            b = tl.load(wt + (at + k)[:, None] * BLOCK + i[None, :])
            acc = tl.dot(a, b, acc)
        if tile > 0:
            acc += 1.0
        tl.store(y + m[:, None] * BLOCK + i[None, :], acc, mask=(m < M)[:, None])


@triton.jit
def sums(x, y, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, count):
        acc += tl.load(x + at * BLOCK + i)
    tl.store(y + tl.program_id(0), tl.sum(acc))


def ir(function: Any, types: dict[str, str], constants: dict[str, int]) -> str:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in function.params]
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
    )
    text = triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ttir"]
    assert isinstance(text, str)
    return text


def test_a_persistent_product_with_a_ragged_end() -> None:
    """M = 200 are four tiles of 64, the last one masked, over three programs; K is three turns."""
    constants = {"M": 200, "K": 96, "PROGRAMS": 3, "BLOCK": 64}
    types = {"x": "*fp16", "wt": "*fp16", "y": "*fp32"}
    found = work(ir(products, types, constants), 3)
    assert found.loaded_bytes == pytest.approx(4 * 3 * 2 * (64 * 32 + 32 * 64))
    assert found.stored_bytes == pytest.approx(4 * 64 * 64 * 4)
    assert found.tensor_flops == pytest.approx(4 * 3 * 2 * 64 * 64 * 32)
    assert found.balance == pytest.approx(4 / 3 / 2)  # one of them has two tiles


def test_scalars_and_reductions() -> None:
    found = work(ir(sums, {"x": "*fp32", "y": "*fp32"}, {"count": 10, "BLOCK": 128}), 5)
    assert found.loaded_bytes == 5 * 10 * 128 * 4
    assert found.stored_bytes == 5 * 4
    assert found.tensor_flops == 0


@triton.jit
def turns(x, y, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.arange(0, BLOCK)
    for _ in range(tl.num_programs(1)):
        for at in range(tl.program_id(0), 12, tl.num_programs(0)):
            tl.store(y + at * BLOCK + i, tl.load(x + at * BLOCK + i))


def test_the_number_of_programs_is_known() -> None:
    found = work(ir(turns, {"x": "*fp16", "y": "*fp16"}, {"BLOCK": 128}), 4)
    assert found.loaded_bytes == found.stored_bytes == 12 * 128 * 2
    assert found.balance == 1


@triton.jit
def product(x: tl.tensor, y: tl.tensor, BLOCK: tl.constexpr) -> None:
    i = tl.arange(0, BLOCK)
    for at in range(3 * tl.num_programs(1)):
        tl.store(y + at * BLOCK + i, tl.load(x + at * BLOCK + i))


def test_a_product_of_known_numbers_is_known() -> None:
    found = work(ir(product, {"x": "*fp16", "y": "*fp16"}, {"BLOCK": 128}), 4)
    assert found.loaded_bytes == 4 * 3 * 128 * 2


def test_a_loop_of_unknown_length_is_refused() -> None:
    types = {"x": "*fp32", "y": "*fp32", "count": "i32"}
    with pytest.raises(ValueError, match=r"tl\.constexpr"):
        work(ir(sums, types, {"BLOCK": 128}), 5)
