"""Predictions against what each quantity of a compiled kernel must do to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from targets import cuda
from tune.chain import Chain
from tune.cubin import KernelFacts
from tune.prediction import Launched, Measured, Prediction, Work, predict

H100 = cuda.DEVICES["h100"].gpu
MIB = 1 << 20
NODE_S, MEMORY_S, L2_S = 0.88e-6, 0.6e-6, 0.28e-6


def kernel(*depths: dict[str, int], registers: int = 64) -> KernelFacts:
    return KernelFacts(
        name="kernel", registers=registers, local_bytes=0, shared_bytes=0, depths=depths
    )


def launch(facts: KernelFacts, *, blocks: int, loaded: float, **given: Any) -> Launched:
    options = {"threads": 128, "shared_bytes": 0, "stored": 0.0, "tensor_flops": 0.0} | given
    turns = options.get("turns", (1.0,) * len(facts.depths))
    work = Work(
        loaded_bytes=loaded, stored_bytes=options["stored"], tensor_flops=options["tensor_flops"]
    )
    return Launched(
        facts=facts,
        blocks=blocks,
        threads=options["threads"],
        shared_bytes=options["shared_bytes"],
        work=work,
        chain=Chain(rounds=options.get("rounds", 1.0), cycles=0.0, turns=turns),
    )


def seconds(launched: Launched, least_bytes: float, *, cold: bool = False) -> Prediction:
    return predict(launched, least_bytes, H100, "float16", Measured(), cold=cold)


COPY = kernel({"LDG.E.128": 2, "STG.E.128": 2, "IMAD": 20}, registers=24)


def test_a_large_copy_is_bound_by_memory() -> None:
    """4096 bytes a block: 128 threads with two vectors of 16 bytes each."""
    copied = 4096 * 65536
    found = seconds(launch(COPY, blocks=65536, loaded=copied, stored=copied), 2 * copied)
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(2 * copied / (0.87 * 3.35e12) + NODE_S, rel=0.05)
    assert (found.occupancy.blocks, found.occupancy.share) == (16, 1.0)


def test_a_tiny_launch_waits_for_its_node_and_for_one_round_of_loads() -> None:
    one = launch(COPY, blocks=4, loaded=4 * 4096, stored=4 * 4096)
    assert seconds(one, 8 * 4096).seconds == pytest.approx(NODE_S + L2_S, rel=0.02)
    assert seconds(one, 8 * 4096, cold=True).seconds == pytest.approx(NODE_S + MEMORY_S, rel=0.02)


def test_each_load_again_costs_l2() -> None:
    """A product whose tiles are loaded eight times over."""
    tiles = kernel({"STG.E.128": 4}, {"LDGSTS.E.128": 4, "HGMMA": 4, "IMAD": 10}, registers=128)
    given = {"shared_bytes": 96 * 1024, "stored": 16 * MIB, "tensor_flops": 1e9}
    once = seconds(launch(tiles, blocks=1320, loaded=64 * MIB, **given), 80 * MIB)
    again = seconds(launch(tiles, blocks=1320, loaded=512 * MIB, **given), 80 * MIB)
    assert again.l2_s == pytest.approx(8 * once.l2_s)
    assert again.memory_s == once.memory_s
    assert again.seconds > once.seconds


def test_taps_are_found_in_l1_but_pass_through_it() -> None:
    taps = kernel({"LDG.E.128": 9, "STG.E.128": 1, "FFMA": 72}, registers=64)
    found = seconds(launch(taps, blocks=10_000, loaded=9 * 64 * MIB, stored=64 * MIB), 128 * MIB)
    assert found.l2_s < found.l1_s
    assert found.l1_s == pytest.approx(640 * MIB / (128 * 132 * 1.98e9), rel=132 / 10_000)


def test_padding_and_the_last_wave_cost_tensor_time() -> None:
    tiles = kernel({"STG.E.128": 4}, {"LDGSTS.E.128": 4, "HGMMA": 4}, registers=128)
    full = launch(tiles, blocks=132, loaded=MIB, tensor_flops=132e9)
    one_more = launch(tiles, blocks=133, loaded=MIB, tensor_flops=133e9)
    assert seconds(full, MIB).tensor_s == pytest.approx(132e9 / 989.5e12)
    assert seconds(one_more, MIB).tensor_s == pytest.approx(2 * 132e9 / 989.5e12)


def test_instructions_count_as_often_as_their_loop_turns() -> None:
    turning = kernel({"IMAD": 50}, {"LDG.E.128": 4, "IMAD": 96})
    found = seconds(launch(turning, blocks=132, loaded=MIB, turns=(1.0, 16.0)), MIB)
    assert found.issue_s == pytest.approx((50 + 16 * 100) * 4 / (4 * 1.98e9))


def test_fewer_blocks_at_once_are_more_waves_that_wait() -> None:
    narrow = launch(COPY, blocks=132 * 8, loaded=132 * 8 * 4096)
    wide = replace(narrow, shared_bytes=110 * 1024)  # two blocks at once instead of all eight
    assert seconds(narrow, MIB).chain_s == pytest.approx(L2_S)
    assert seconds(wide, MIB).chain_s == pytest.approx(4 * L2_S)


def test_of_many_waves_the_last_may_be_part_of_one() -> None:
    two_at_once = {"loaded": MIB, "shared_bytes": 110 * 1024}
    few, many = (launch(COPY, blocks=132 * n, **two_at_once) for n in (5, 33))
    assert seconds(few, MIB).chain_s == pytest.approx(3 * L2_S)
    assert seconds(many, MIB).chain_s == pytest.approx(16.5 * L2_S)


def test_rounds_wait_for_one_another_and_one_a_turn_for_memory() -> None:
    staged = kernel({"STG.E.128": 1}, {"LDGSTS.E.128": 8})
    one = launch(staged, blocks=132, loaded=MIB, rounds=9.0, turns=(1.0, 4.0))
    assert seconds(one, MIB).chain_s == pytest.approx(9 * L2_S)
    assert seconds(one, MIB, cold=True).chain_s == pytest.approx(5 * MEMORY_S + 4 * L2_S)


def test_what_a_block_computes_comes_on_top_of_its_rounds() -> None:
    one = launch(COPY, blocks=4, loaded=4 * 4096)
    busy = replace(one, chain=Chain(rounds=1.0, cycles=1980.0, turns=(1.0,)))
    assert seconds(busy, MIB).chain_s == pytest.approx(L2_S + 1e-6)


def test_the_busiest_program_is_waited_for() -> None:
    tiles = kernel({"STG.E.128": 4}, {"LDGSTS.E.128": 4, "HGMMA": 4}, registers=128)
    even = launch(tiles, blocks=132, loaded=MIB, tensor_flops=132e9)
    uneven = replace(even, work=replace(even.work, balance=0.75))
    assert seconds(uneven, MIB).tensor_s == pytest.approx(seconds(even, MIB).tensor_s / 0.75)


def test_multiply_adds_on_cuda_cores_take_their_time() -> None:
    product = kernel({"FFMA": 10_000, "LDG.E.128": 1})
    found = seconds(launch(product, blocks=1320, loaded=1320 * 128 * 16), MIB)
    assert found.bound in ("fma", "issue")
    assert found.fma_s == pytest.approx(2 * 10_000 * 128 * 1320 / 67e12)


def test_a_block_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="less shared on sm_90"):
        seconds(launch(COPY, blocks=1, loaded=1, shared_bytes=228 * 1024), 1)


def test_terms_overlap_in_part() -> None:
    """Of two kernels that move the same, the one that computes less is thought the faster."""
    copied = 4096 * 65536
    lean = launch(COPY, blocks=65536, loaded=copied, stored=copied)
    busy = replace(lean, facts=kernel({"LDG.E.128": 2, "STG.E.128": 2, "IMAD": 400}, registers=24))
    assert seconds(lean, 2 * copied).bound == seconds(busy, 2 * copied).bound == "memory"
    assert seconds(lean, 2 * copied).seconds < seconds(busy, 2 * copied).seconds
    one, none = (
        predict(busy, 2 * copied, H100, "float16", Measured(overlap=degree)).seconds
        for degree in (200.0, 1.0)
    )
    found = seconds(busy, 2 * copied)
    terms = (found.memory_s, found.l2_s, found.l1_s, found.issue_s, found.chain_s)
    assert one == pytest.approx(NODE_S + max(terms), rel=0.01)
    assert none == pytest.approx(NODE_S + sum(terms) + found.fma_s)


def test_what_was_measured_is_named_and_can_be_replaced() -> None:
    one = launch(COPY, blocks=4, loaded=4 * 4096)
    changed = predict(one, 1, H100, "float16", Measured(node_s=1e-6, l2_latency_s=2e-6))
    assert changed.seconds == pytest.approx(3e-6, rel=0.01)
