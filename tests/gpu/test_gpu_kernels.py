"""Every kernel for GPUs on this machine's own, against the float64 reference."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from measuring import outcomes

from kernels import KERNELS, KINDS
from kernels.workload import DTYPES
from targets import machines
from targets.target import Target
from tune import suite
from tune.runners.gpu import MATMUL, GpuRunner
from tune.runners.protocol import Entry

pytestmark = pytest.mark.gpu
NAMES = [name for name in KERNELS if "cuda" in KINDS[name.rpartition(".")[0]]]


@pytest.fixture(scope="module")
def target() -> Target:
    try:
        host: Target = machines("cuda").host()
    except ValueError as error:
        pytest.skip(str(error))
    return host


@pytest.fixture(scope="module")
def runner(target: Target) -> Iterator[GpuRunner]:
    with GpuRunner(target, builders=os.cpu_count() or 1) as runner:
        yield runner


@pytest.fixture(scope="module")
def entries(target: Target) -> tuple[Entry, ...]:
    return suite.entries(target)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_kernel_computes_what_the_reference_computes(
    name: str, dtype: str, runner: GpuRunner, entries: tuple[Entry, ...]
) -> None:
    asked = [each for each in entries if (each.kernel, each.workload.dtype) == (name, dtype)]
    if not asked:
        pytest.skip(f"{name} computes nothing in {dtype}")
    wrong = [
        f"{entry.workload.key} {entry.config}: {outcome.error}"
        for entry, outcome in zip(asked, runner.check(asked), strict=True)
        if outcome.error is not None
    ]
    assert wrong == []


def test_times_are_those_of_a_gpu(runner: GpuRunner, entries: tuple[Entry, ...]) -> None:
    """A kernel is no faster than the memory, or a launch, and the peak no higher than NVIDIA's."""
    gpu = runner._target.gpu
    peak = runner.peak_flops("float16")
    assert runner.trial.peak == MATMUL
    assert 0.3 * gpu.tensor_f16_flops < peak < 1.05 * gpu.tensor_f16_flops
    entry = next(each for each in reversed(entries) if each.kernel == "triton.depthwise")
    [outcome] = outcomes(runner, entry.workload, entry.kernel, [entry.config])
    assert outcome.error is None
    assert 5e-7 < min(outcome.seconds) <= max(outcome.seconds) < 1e-3
