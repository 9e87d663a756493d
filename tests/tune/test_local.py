"""The local runner: a time for a right candidate, and a reason for each that is anything else."""

from __future__ import annotations

import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measuring import outcomes

from kernels import kernel
from kernels.space import Config
from kernels.workload import Pointwise, Workload
from targets import machines
from targets.target import Target
from tune import builder
from tune.runners import builders, local
from tune.runners.local import FINAL, TRIAL, LocalRunner
from tune.runners.protocol import Entry, Outcome

pytestmark = pytest.mark.slow
TARGET = machines("x86").host()
WORKLOAD = Pointwise(N=1, H=4, W=4, Ci=16, Co=32)
SPACE = kernel("te.pointwise").space(WORKLOAD, TARGET)
RIGHT = SPACE.default
SHAPES = ((16, 16), (16, 32), (32,), (16, 32))  # as 16 pixels; nothing looks at those of wt, bias
Shapes = tuple[tuple[int, ...], ...]

# A library whose function `main` does something else than to compute.
LIBRARY = """
#include <stdlib.h>
#include <unistd.h>
int __tvm_ffi_main(void *self, void *arguments, int count, void *result) {{ {body} return 0; }}
"""


@pytest.fixture(scope="module")
def runner() -> Iterator[LocalRunner]:
    """One for all tests: each must leave it usable."""
    with LocalRunner(TARGET, threads=1, builders=2) as runner:
        yield runner


@pytest.fixture(autouse=True)
def _recovers(runner: LocalRunner) -> Iterator[None]:
    yield
    [outcome] = outcomes(runner, WORKLOAD, "te.pointwise", [RIGHT])
    assert outcome.error is None


def measured(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch, build: Callable[..., Any]
) -> Outcome:
    """The outcome of the default config when candidates are built by `build`."""
    with monkeypatch.context() as patch:
        patch.setattr(builders, "build", build)
        [outcome] = outcomes(runner, WORKLOAD, "te.pointwise", [RIGHT])
    assert outcome.config == RIGHT
    assert outcome.error is not None
    assert "\n" not in outcome.error
    assert (outcome.seconds, outcome.checked) == ((), False)
    return outcome


def test_right_candidates_have_times(runner: LocalRunner) -> None:
    configs = list(SPACE)[:3]
    found = list(outcomes(runner, WORKLOAD, "te.pointwise", configs))
    assert [outcome.config for outcome in found] == configs
    for outcome in found:
        assert (outcome.error, outcome.checked) == (None, True)
        assert len(outcome.seconds) == TRIAL.repeat
        assert all(0 < second < math.inf for second in outcome.seconds)


def test_config_that_does_not_compile_is_a_result_among_others(runner: LocalRunner) -> None:
    wrong: list[Config] = [{}, RIGHT | {"BLOCK_P": 0}, RIGHT | {"CHUNK": "all"}]
    found = list(outcomes(runner, WORKLOAD, "te.pointwise", [wrong[0], RIGHT, *wrong[1:]]))
    assert found[1].error is None
    for outcome in (found[0], *found[2:]):
        assert outcome.error is not None
        assert outcome.error.startswith("compile: ")
        assert "\n" not in outcome.error
        assert not outcome.checked


def build_without_activation(workload: Workload, *others: Any) -> Shapes:
    return builder.build(replace(workload, activation="none"), *others)


def test_candidate_that_computes_something_else_has_no_time(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = measured(runner, monkeypatch, build_without_activation)
    assert str(outcome.error).startswith("wrong: output (0, ")
    assert "; expected 0 within " in str(outcome.error)


def build_library(body: str, path: Path) -> Shapes:
    source = path.with_suffix(".c")
    source.write_text(LIBRARY.format(body=body))
    command = [*builder.linker(TARGET), "-x", "c", "-shared", "-fPIC", "-o", str(path), str(source)]
    subprocess.run(command, check=True)
    return SHAPES


def build_idle(workload: Workload, name: str, config: Config, target: Target, path: Path) -> Shapes:
    return build_library("", path)


def build_crashing(
    workload: Workload, name: str, config: Config, target: Target, path: Path
) -> Shapes:
    return build_library("abort();", path)


def build_hanging(
    workload: Workload, name: str, config: Config, target: Target, path: Path
) -> Shapes:
    return build_library("for (;;) pause();", path)


def build_nothing(
    workload: Workload, name: str, config: Config, target: Target, path: Path
) -> Shapes:
    path.write_text("no library")
    return SHAPES


def crash(*_: Any) -> None:
    os.abort()


def hang(*_: Any) -> None:
    threading.Event().wait()


def test_candidate_that_writes_nothing_is_wrong(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = measured(runner, monkeypatch, build_idle)
    assert str(outcome.error).startswith("wrong: output (0, 0, 0, 0) is nan; expected ")


def test_candidate_that_crashes(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = measured(runner, monkeypatch, build_crashing)
    assert outcome.error == "run: worker process ended with status -6"


def test_candidate_that_hangs(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RUN_TIMEOUT_S", 1.0)
    outcome = measured(runner, monkeypatch, build_hanging)
    assert outcome.error == "timeout: no answer after 1 s"


def test_candidate_that_cannot_be_loaded(
    runner: LocalRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(measured(runner, monkeypatch, build_nothing).error).startswith("run: ")


def test_compiler_that_crashes(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = measured(runner, monkeypatch, crash)
    assert outcome.error == "compile: worker process ended with status -6"


def test_compiler_that_hangs(runner: LocalRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "BUILD_TIMEOUT_S", 1.0)
    outcome = measured(runner, monkeypatch, hang)
    assert outcome.error == "timeout: compiler gave no answer after 1 s"


def test_rivals_meet_in_what_of_a_network_can_be_built(runner: LocalRunner) -> None:
    def entry(workload: Workload, config: Config) -> Entry:
        return Entry(workload=workload, kernel="te.pointwise", config=config)

    other = replace(WORKLOAD, Ci=32)
    rivals = [entry(WORKLOAD, config) for config in (*list(SPACE)[:2], {})]
    for network in ([entry(other, {}), rivals[0]], [entry(other, {}), rivals[2]], []):
        one, two, broken = runner.compete(network, rivals)
        assert (one.error, two.error) == (None, None)
        assert len(one.seconds) == len(two.seconds) == FINAL.rounds
        assert str(broken.error).startswith("compile: ")


def test_memory_rate_is_that_of_a_machine(runner: LocalRunner) -> None:
    assert 1e9 < runner.memory_bytes_per_s() < 1e12


def test_peak_is_that_of_a_machine(runner: LocalRunner) -> None:
    """Between one operation a nanosecond and a thousand times that, for one thread."""
    assert 1e9 < runner.peak_flops("float32") < 1e12


def test_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LocalRunner(TARGET, threads=1, builders=1) as runner:
        assert [o.error for o in outcomes(runner, WORKLOAD, "te.pointwise", [RIGHT])] == [None]
    assert list(tmp_path.iterdir()) == []
