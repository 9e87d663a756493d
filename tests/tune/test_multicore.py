"""The model of more cores: by hand, and at its limits."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import inf
from typing import Any

import pytest

from kernels.te.tasks import Grid
from kernels.workload import Head, Pointwise, Separable, flops, moved_bytes, weight_bytes
from tune.multicore import (
    SOURCES,
    Cores,
    Part,
    apiece_s,
    fastest,
    floor_s,
    terms,
    total,
)

LAYER = Pointwise(N=1, H=14, W=14, Ci=256, Co=512)
CORES = Cores(
    fork_join_s=1e-6,
    far_fork_join_s=3e-6,
    near_bytes_per_s=10e9,
    far_bytes_per_s=1e9,
    cores_per_l3=4,
    core_bytes_per_s=20e9,
    memory_bytes_per_s=100e9,
)
# Sharing costs nothing.
FREE = Cores(
    fork_join_s=1e-30,
    far_fork_join_s=1e-30,
    near_bytes_per_s=1e30,
    far_bytes_per_s=1e30,
    cores_per_l3=1,
    core_bytes_per_s=1e30,
    memory_bytes_per_s=1e30,
)


def part(rows: int = 14, columns: int = 16, **changes: Any) -> Part:
    grid = Grid(rows=rows, columns=columns, whole=True)
    return replace(Part(workload=LAYER, grids=(grid,), alone_s=448e-6), **changes)


def test_terms_of_one_kernel_by_hand() -> None:
    # 14 x 3 tasks on 8 threads: 6 each, that is two whole rows
    found = terms(part(columns=3), 8, CORES)
    assert found.even_s == pytest.approx(56e-6)
    assert found.uneven_s == pytest.approx(448e-6 * (6 / 42 - 1 / 8))
    assert found.fork_join_s == pytest.approx(3 * 1e-6 + 4 * 3e-6)
    # a seventh of 200704 bytes; three of eight threads are near, four far, one has written itself
    read = 14 * 14 * 256 * 4 / 7
    assert found.exchange_s == pytest.approx(read * (3 / 8 / 10e9 + 4 / 8 / 1e9))
    assert found.memory_s == 0  # 526 kB take 13 us at 40 GB/s
    slow = replace(CORES, memory_bytes_per_s=4e9)
    weights_s = (256 * 512 * 4 + 512 * 4) / 4e9
    assert terms(part(columns=3), 8, slow).memory_s == pytest.approx(weights_s - 448e-6 * 6 / 42)
    assert found.seconds == pytest.approx(sum(asdict(found).values()))


@pytest.mark.parametrize("cores", [Cores(), CORES, FREE])
def test_one_thread_takes_what_it_took(cores: Cores) -> None:
    assert terms(part(), 1, cores).seconds == pytest.approx(448e-6)
    assert apiece_s([part(), part()], 1, cores) == pytest.approx(2 * 448e-6)


def test_no_number_of_cores_is_faster_than_the_longest_task() -> None:
    for threads in (14 * 16, 10**4, 10**6):
        found = terms(part(), threads, FREE)
        assert found.seconds == pytest.approx(448e-6 / (14 * 16))
        forked_s = terms(part(), threads, CORES).fork_join_s
        assert forked_s == pytest.approx(3 * 1e-6 + (threads - 4) * 3e-6)


def test_even_cores_that_cost_nothing_scale_to_the_number_of_tasks() -> None:
    for threads in (1, 2, 4, 7, 8, 14, 16, 28, 56, 112, 224):
        assert terms(part(), threads, FREE).seconds == pytest.approx(448e-6 / threads)


def test_more_cores_help_until_forking_costs_more() -> None:
    parts = [part(rows=2**6, columns=2**6)] * 3
    cores = replace(FREE, fork_join_s=1e-6, far_fork_join_s=1e-6)
    best = fastest(parts, 512, cores)
    times = [total(parts, threads, cores).seconds for threads in range(1, 513)]
    assert times[best - 1] == min(times)
    assert best == pytest.approx(448**0.5, rel=0.1)  # where alone_s / T**2 is what a thread costs
    assert total(parts, 2 * best, cores).seconds > times[best - 1]
    for fewer, more in ((1, 2), (2, 4), (4, 8), (8, 16)):
        assert times[more - 1] < times[fewer - 1]


def test_a_network_takes_what_its_kernels_take() -> None:
    parts = [part(), part(rows=7), part(alone_s=1e-3)]
    for threads in (1, 3, 64):
        each = sum(terms(one, threads, CORES).seconds for one in parts)
        assert total(parts, threads, CORES).seconds == pytest.approx(each)


def test_two_loops_fork_twice() -> None:
    head = Head(N=1, H=7, W=7, Ci=1024, Co=1001)
    pooling, dense = (
        Grid(rows=1, columns=count, whole=whole) for count, whole in ((32, 0), (11, 1))
    )
    found = terms(Part(workload=head, grids=(pooling, dense), alone_s=150e-6), 4, CORES)
    assert found.fork_join_s == pytest.approx(2 * 3e-6)
    # of 11 tasks a thread has 3, of 32 all have 8
    x_bytes = 49 * 1024 * 4
    dense_s = 150e-6 * weight_bytes(head) / (x_bytes + weight_bytes(head))
    assert found.uneven_s == pytest.approx(dense_s * (3 / 11 - 1 / 4))
    read = x_bytes / 4 + 1024 * 4  # its own channels of pixels, and all sums
    assert found.exchange_s == pytest.approx(read * 3 / 4 / 10e9)


def test_two_layers_in_one_fork_and_exchange_once() -> None:
    both_in_one = Separable(N=1, Hi=14, Wi=14, C=256, Co=512, stride=1, pad=(1, 1, 1, 1))
    apart = [
        part(workload=both_in_one.depthwise, grids=(Grid(rows=14, columns=16, whole=False),)),
        part(workload=both_in_one.pointwise),
    ]
    together = part(
        workload=both_in_one, grids=(Grid(rows=14, columns=1, whole=True),), alone_s=896e-6
    )
    both, one = total(apart, 14, CORES), terms(together, 14, CORES)
    assert one.fork_join_s == pytest.approx(both.fork_join_s / 2)
    assert one.exchange_s < both.exchange_s
    assert one.seconds < both.seconds


def test_weights_are_what_moves_beside_input_and_output() -> None:
    activations = 4 * (LAYER.pixels * 256 + LAYER.pixels * 512)
    assert weight_bytes(LAYER) == moved_bytes(LAYER) - activations


def test_memory_is_shared() -> None:
    assert [CORES.from_memory(threads) for threads in (1, 2, 5, 64)] == [20e9, 40e9, 100e9, 100e9]
    slow = replace(CORES, core_bytes_per_s=1e9)
    alone_s = part().alone_s
    assert weight_bytes(LAYER) > alone_s * 1e9  # not all of them came from memory
    assert apiece_s([part()], 1, slow) == pytest.approx(alone_s)
    assert apiece_s([part()], 100, slow) == pytest.approx(alone_s)
    assert apiece_s([part()], 200, slow) == pytest.approx(2 * alone_s)
    fast = replace(CORES, core_bytes_per_s=1e12, memory_bytes_per_s=1e9)
    assert apiece_s([part()], 1, fast) == pytest.approx(weight_bytes(LAYER) / 1e9)


def test_floor_is_the_longer_of_products_and_weights() -> None:
    head = Head(N=1, H=7, W=7, Ci=1024, Co=1001)
    assert floor_s([LAYER], 4, CORES, 100e9) == pytest.approx(flops(LAYER) / 400e9)
    assert floor_s([head], 4, CORES, 100e9) == pytest.approx(weight_bytes(head) / 80e9)
    both = floor_s([LAYER, head], 4, CORES, 100e9)
    assert both == pytest.approx(flops(LAYER) / 400e9 + weight_bytes(head) / 80e9)


def test_every_assumption_has_a_source() -> None:
    assert list(SOURCES) == list(asdict(Cores()))


@pytest.mark.parametrize("value", [0, -1.0, inf])
def test_costs_that_cannot_be(value: float) -> None:
    with pytest.raises(ValueError, match=r"near_bytes_per_s is .*; expected a number above 0"):
        Cores(near_bytes_per_s=value)
