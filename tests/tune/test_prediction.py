"""Predictions against what each quantity of a compiled kernel must do to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from targets import cuda
from tune.cubin import KernelFacts
from tune.prediction import Assumptions, Launched, Prediction, Work, predict

H100 = cuda.DEVICES["h100"].gpu
MIB = 1 << 20


def kernel(*depths: dict[str, int], registers: int = 64) -> KernelFacts:
    return KernelFacts(
        name="kernel", registers=registers, local_bytes=0, shared_bytes=0, depths=depths
    )


def launch(facts: KernelFacts, *, blocks: int, loaded: float, **given: Any) -> Launched:
    options = {"threads": 128, "shared_bytes": 0, "stored": 0.0, "tensor_flops": 0.0} | given
    work = Work(
        loaded_bytes=loaded, stored_bytes=options["stored"], tensor_flops=options["tensor_flops"]
    )
    return Launched(
        facts=facts,
        blocks=blocks,
        threads=options["threads"],
        shared_bytes=options["shared_bytes"],
        work=work,
    )


def seconds(launched: Launched, least_bytes: float) -> Prediction:
    return predict(launched, least_bytes, H100, "float16", Assumptions())


COPY = kernel({"LDG.E.128": 2, "STG.E.128": 2, "IMAD": 20}, registers=24)


def test_a_large_copy_is_bound_by_memory() -> None:
    """4096 bytes a block: 128 threads with two vectors of 16 bytes each."""
    copied = 4096 * 65536
    found = seconds(launch(COPY, blocks=65536, loaded=copied, stored=copied), 2 * copied)
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(2 * copied / 3.35e12 + 3.1e-6, rel=0.01)
    assert (found.occupancy.blocks, found.occupancy.share) == (16, 1.0)


def test_a_tiny_launch_waits_for_memory_and_for_its_node() -> None:
    found = seconds(launch(COPY, blocks=4, loaded=4 * 4096, stored=4 * 4096), 8 * 4096)
    assert found.seconds == pytest.approx(0.6e-6 + 2.5e-6, rel=0.02)
    assert found.latency_s == 0


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


def test_loops_run_as_often_as_they_must_load() -> None:
    """64 bytes a thread and turn; 1024 bytes a thread in all: 16 turns of 100 instructions."""
    turning = kernel({"IMAD": 50}, {"LDG.E.128": 4, "IMAD": 96})
    found = seconds(launch(turning, blocks=132, loaded=132 * 128 * 1024), MIB)
    assert found.issue_s == pytest.approx((50 + 16 * 100) * 4 / (4 * 1.98e9))


def test_a_persistent_loop_runs_as_often_as_it_must_store() -> None:
    """Two tiles a program, each stored at depth 1 and loaded in eight turns at depth 2."""
    persistent = kernel(
        {"IMAD": 10}, {"STG.E.128": 1, "IMAD": 9}, {"LDGSTS.E.128": 2, "HGMMA": 8}, registers=128
    )
    threads = 132 * 128
    work = {"loaded": 2 * 8 * 32 * threads, "stored": 2 * 16 * threads}
    found = seconds(launch(persistent, blocks=132, **work), MIB)
    assert found.issue_s == pytest.approx((10 + 2 * 10 + 16 * 10) * 4 / (4 * 1.98e9))


def test_fewer_blocks_at_once_are_more_waves_that_wait() -> None:
    narrow = launch(COPY, blocks=132 * 8, loaded=132 * 8 * 4096)
    wide = replace(narrow, shared_bytes=110 * 1024)  # two blocks at once instead of all eight
    assert seconds(narrow, MIB).latency_s == 0
    assert seconds(wide, MIB).latency_s == pytest.approx(3 * 0.6e-6)


def test_loads_that_wait_for_loads_come_from_l2() -> None:
    """A block stages 64 KiB at a time of the 256 KiB that it loads."""
    staged = kernel({"STG.E.128": 1}, {"LDGSTS.E.128": 8})
    one = launch(staged, blocks=132, loaded=132 * 256 * 1024, shared_bytes=64 * 1024)
    assert seconds(one, MIB).latency_s == pytest.approx(3 * 0.2e-6)


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


def test_terms_overlap_as_assumed() -> None:
    """Of two kernels that move the same, the one that computes less is thought the faster."""
    copied = 4096 * 65536
    lean = launch(COPY, blocks=65536, loaded=copied, stored=copied)
    busy = replace(lean, facts=kernel({"LDG.E.128": 2, "STG.E.128": 2, "IMAD": 400}, registers=24))
    assert seconds(lean, 2 * copied).bound == seconds(busy, 2 * copied).bound == "memory"
    assert seconds(lean, 2 * copied).seconds < seconds(busy, 2 * copied).seconds
    one, none = (
        predict(busy, 2 * copied, H100, "float16", Assumptions(overlap=degree)).seconds
        for degree in (200.0, 1.0)
    )
    found = seconds(busy, 2 * copied)
    terms = (found.memory_s, found.l2_s, found.l1_s, found.issue_s, found.latency_s)
    assert one == pytest.approx(3.1e-6 + max(terms), rel=0.01)
    assert none == pytest.approx(3.1e-6 + sum(terms) + found.fma_s)


def test_assumptions_are_named_and_can_be_replaced() -> None:
    one = launch(COPY, blocks=4, loaded=4 * 4096)
    changed = predict(one, 1, H100, "float16", Assumptions(node_s=1e-6, memory_latency_s=2e-6))
    assert changed.seconds == pytest.approx(3e-6, rel=0.01)
