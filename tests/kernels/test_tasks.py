"""Tasks counted from configs, against the loops that the kernels really have."""

from __future__ import annotations

import re

import pytest

from kernels import kernel, kernels_for
from kernels.space import Config
from kernels.te.tasks import SPLITS, Grid, grids
from kernels.workload import Conv, Depthwise, Head, Pointwise, Separable, Workload
from targets import x86
from targets.target import Target
from tune.mobilenet import MobileNet
from tune.pipeline import Log
from tune.plan import plan

ZNVER4 = x86.DEVICES["znver4"]
WORKLOADS = (
    Conv(N=2, Hi=26, Wi=18, Ci=3, Co=48, stride=2, pad=(0, 1, 0, 1)),
    Depthwise(N=2, Hi=12, Wi=11, C=48, stride=1, pad=(1, 1, 1, 1)),
    Pointwise(N=2, H=9, W=11, Ci=64, Co=80),
    Head(N=4, H=3, W=3, Ci=96, Co=70),
    Separable(N=2, Hi=12, Wi=14, C=32, Co=128, stride=1, pad=(1, 1, 1, 1)),
)


def parallel_loops(name: str, workload: Workload, config: Config, target: Target) -> list[int]:
    """Extents of the parallel loops of the lowered kernel, in their order."""
    script = kernel(name).lower(workload, config, target)["main"].script()
    return [int(extent) for extent in re.findall(r"in T\.parallel\((\d+)", script)]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: type(w).__name__)
def test_tasks_are_the_turns_of_the_parallel_loops(workload: Workload) -> None:
    for name in kernels_for(workload, ZNVER4):
        configs = list(kernel(name).space(workload, ZNVER4))
        counts = set()
        for config in configs[:: max(1, len(configs) // 8)]:
            tasks = [grid.tasks for grid in grids(workload, config)]
            assert tasks == parallel_loops(name, workload, config, ZNVER4)
            counts.add(tuple(tasks))
        assert len(counts) > 1 or name == "te.llvm.conv"  # whose tasks are rows


@pytest.mark.parametrize("threads", [1, 2])
def test_tasks_of_every_kernel_that_the_log_chooses(threads: int) -> None:
    records = Log.at(None, ZNVER4).records()
    choices = plan(MobileNet().layers, records, ZNVER4, threads)
    for choice in {choice.workload: choice for choice in choices}.values():
        tasks = [one.tasks for one in grids(choice.workload, choice.config)]
        assert tasks == parallel_loops(choice.kernel, choice.workload, choice.config, ZNVER4)


def test_knobs_that_split_do_nothing_else() -> None:
    """They are of every kernel's knobs those that no tile of registers and no filter depends on."""
    knobs = {
        type(workload): {
            knob.name
            for name in kernels_for(workload, ZNVER4)
            for knob in kernel(name).space(workload, ZNVER4).knobs
        }
        & set(SPLITS)
        for workload in WORKLOADS
    }
    assert knobs == {
        Conv: {"BLOCK_HO"},
        Depthwise: {"BLOCK_HO"},
        Pointwise: {"CHUNK"},
        Head: {"BLOCK_CI"},
        Separable: {"ROWS", "BLOCK_HO"},
    }


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 1), (7, 3), (2, 16), (28, 8)])
def test_a_thread_has_turns_that_follow_one_another(rows: int, columns: int, threads: int) -> None:
    tasks = [(row, column) for row in range(rows) for column in range(columns)]
    each = -(-len(tasks) // threads)
    shares = [tasks[start : start + each] for start in range(0, len(tasks), each)]
    whole = Grid(rows=rows, columns=columns, whole=True)
    assert whole.most(threads) == max(map(len, shares))
    touched = max(len({row for row, _ in share}) for share in shares)
    assert whole.read(threads) == pytest.approx(touched / rows)
    own = Grid(rows=rows, columns=columns, whole=False)
    assert own.read(threads) == pytest.approx(max(map(len, shares)) / len(tasks))
