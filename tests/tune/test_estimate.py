"""Candidates judged without a board: exactly, repeatably, and only when they are right."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from measuring import outcomes

from kernels import kernel, kernels_for
from kernels.workload import Conv, Depthwise, Head, Pointwise, Separable, Workload, flops
from targets.arm64 import DEVICES
from tune.emulator import qemu
from tune.emulator.instrument import GuestFailed, GuestTimeout, Instrument
from tune.errors import SetupError
from tune.runners import estimate
from tune.runners.estimate import NOMINAL_HZ, EstimateRunner

TARGET = DEVICES["cortex-a76"]
POINTWISE = Pointwise(N=1, H=7, W=7, Ci=64, Co=64)
DEPTHWISE = Depthwise(N=1, Hi=14, Wi=14, C=32, stride=2, pad=(0, 1, 0, 1))


@pytest.mark.parametrize(
    ("name", "workload"),
    [("te.pointwise", POINTWISE), ("te.depthwise", DEPTHWISE)],
    ids=["pointwise", "depthwise"],
)
def test_counts_are_whole_repeatable_and_above_the_floor(
    counting: EstimateRunner, name: str, workload: Pointwise | Depthwise
) -> None:
    config = kernel(name).space(workload, TARGET).default
    first, second = outcomes(counting, workload, name, [config, config])
    assert first.checked
    assert first.error is None
    assert first == second
    count = first.seconds[0] * NOMINAL_HZ
    assert count == pytest.approx(round(count), abs=1e-3)
    assert flops(workload) / counting.peak_flops("float32") < first.seconds[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    "workload",
    [
        Pointwise(N=1, H=7, W=7, Ci=96, Co=40),
        Pointwise(N=2, H=5, W=3, Ci=200, Co=33),
        Pointwise(N=1, H=1, W=1, Ci=67, Co=1),
        Depthwise(N=2, Hi=9, Wi=6, C=20, stride=2, pad=(0, 1, 0, 1)),
        Conv(N=1, Hi=9, Wi=11, Ci=3, Co=24, stride=2, pad=(0, 1, 0, 1)),
        Head(N=2, H=3, W=2, Ci=40, Co=21),
        Separable(N=1, Hi=10, Wi=6, C=72, Co=24, stride=1, pad=(1, 1, 1, 1)),
    ],
    ids=lambda workload: workload.key,
)
def test_kernels_are_right_in_both_dtypes(
    counting: EstimateRunner, workload: Workload, dtype: str
) -> None:
    """The default config, and those at the ends of the space."""
    workload = replace(workload, dtype=dtype)
    for name in kernels_for(workload, TARGET):
        space = kernel(name).space(workload, TARGET)
        configs = list(space)
        for outcome in outcomes(counting, workload, name, [space.default, configs[0], configs[-1]]):
            assert (outcome.error, outcome.checked) == (None, True), (name, outcome.config)


def test_float16_takes_hardly_more_than_half_the_instructions(counting: EstimateRunner) -> None:
    counts = {}
    for dtype in ("float32", "float16"):
        workload = Pointwise(N=1, H=14, W=14, Ci=256, Co=256, dtype=dtype)
        config = kernel("te.pointwise").space(workload, TARGET).default
        (outcome,) = outcomes(counting, workload, "te.pointwise", [config])
        counts[dtype] = outcome.seconds[0]
    assert counts["float16"] < 0.6 * counts["float32"]


def test_a_core_without_float16_has_no_kernel_for_it() -> None:
    workload = replace(POINTWISE, dtype="float16")
    assert kernels_for(workload, TARGET)
    assert kernels_for(workload, DEVICES["cortex-a72"]) == ()


def test_cycles_are_repeatable_and_fewer_than_instructions(counting: EstimateRunner) -> None:
    if shutil.which("llvm-mca-19") is None and os.environ.get("CI") != "true":
        pytest.skip("the pipeline model needs llvm-mca")
    config = kernel("te.pointwise").space(POINTWISE, TARGET).default
    with EstimateRunner(TARGET, workers=2, estimator="mca") as modelled:
        first, second = outcomes(modelled, POINTWISE, "te.pointwise", [config, config])
        assert first.checked
        assert first == second
        assert modelled.trial.tools.startswith(f"{counting.trial.tools}, llvm-mca")
        assert flops(POINTWISE) / modelled.peak_flops("float32") < first.seconds[0]
    (counted,) = outcomes(counting, POINTWISE, "te.pointwise", [config])
    assert first.seconds[0] < counted.seconds[0]  # the core starts more than one a cycle


def test_outcomes_come_in_the_order_of_their_configs(counting: EstimateRunner) -> None:
    space = kernel("te.pointwise").space(POINTWISE, TARGET)
    configs = [config for config, _ in zip(space, range(5), strict=False)]
    found = list(outcomes(counting, POINTWISE, "te.pointwise", configs))
    assert [outcome.config for outcome in found] == configs
    assert len({outcome.seconds for outcome in found}) > 1


def test_a_wrong_result_has_no_count(
    counting: EstimateRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = kernel("te.pointwise")

    def pack(*arguments: Any) -> Any:
        wt, bias = real.pack(*arguments)
        return wt, bias + np.float32(0.01)

    monkeypatch.setattr(estimate, "kernel", lambda _: SimpleNamespace(pack=pack))
    config = real.space(POINTWISE, TARGET).default
    (outcome,) = outcomes(counting, POINTWISE, "te.pointwise", [config])
    assert outcome.seconds == ()
    assert not outcome.checked
    assert outcome.error is not None
    assert outcome.error.startswith("wrong: output")


def test_what_cannot_be_built_is_a_result(counting: EstimateRunner) -> None:
    (outcome,) = outcomes(counting, POINTWISE, "te.pointwise", [{"BLOCK_P": 0}])
    assert outcome.error is not None
    assert outcome.error.startswith("compile: ")


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (GuestFailed("SIGSEGV"), "run: SIGSEGV"),
        (GuestTimeout("no end after 60 s"), "timeout: no end after 60 s"),
    ],
    ids=["crash", "hang"],
)
def test_a_candidate_that_fails_is_a_result(
    counting: EstimateRunner, monkeypatch: pytest.MonkeyPatch, failure: Exception, error: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(Instrument, "kernel", fail)
    config = kernel("te.pointwise").space(POINTWISE, TARGET).default
    (outcome,) = outcomes(counting, POINTWISE, "te.pointwise", [config])
    assert (outcome.seconds, outcome.error) == ((), error)


def test_without_an_emulator_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SetupError, match=qemu.PROGRAM):
        EstimateRunner(TARGET, workers=1)
