"""Candidates for a GPU judged by the model: what counts, what is refused, what is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from measuring import outcomes

from kernels.space import Config
from kernels.workload import Pointwise, flops, moved_bytes
from targets import cuda
from tune.chain import Chain
from tune.cubin import KernelFacts
from tune.errors import UsageError
from tune.pipeline.site import Site, runner_at
from tune.prediction import MEASURED, Launched, Work, predict
from tune.runners import roofline
from tune.runners.roofline import RooflineRunner
from tune.runners.worker import WorkerCrash, WorkerError, WorkerTimeout

H100 = cuda.DEVICES["h100"]
WORKLOAD = Pointwise(N=1, H=14, W=14, Ci=512, Co=512, dtype="float16")
LAUNCHED = Launched(
    facts=KernelFacts(
        name="kernel",
        registers=64,
        local_bytes=0,
        shared_bytes=0,
        depths=({"STG.E.128": 4}, {"LDGSTS.E.128": 8, "HGMMA": 4}),
    ),
    blocks=64,
    threads=128,
    shared_bytes=48 * 1024,
    work=Work(loaded_bytes=4e6, stored_bytes=2e5, tensor_flops=2e8),
    chain=Chain(rounds=9.0, cycles=2000.0, turns=(1.0, 8.0)),
)
SPILLING = replace(LAUNCHED, facts=replace(LAUNCHED.facts, local_bytes=64, registers=255))
TOO_LARGE = replace(LAUNCHED, shared_bytes=228 * 1024)
Fate = tuple[Launched, ...] | Exception


class Compiler:
    """Stands in for a worker process: what becomes of a config is in the config."""

    fates: dict[str, Fate]

    def call(self, function: Any, *arguments: Any, timeout_s: float) -> tuple[Launched, ...]:
        workload, kernel, config, target = arguments
        assert (workload, kernel, target) == (WORKLOAD, "triton.pointwise", H100)
        fate = self.fates[str(config["FATE"])]
        if isinstance(fate, Exception):
            raise fate
        return fate

    def stop(self) -> None:
        pass


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Any]]]:
    monkeypatch.setattr(roofline, "Worker", Compiler)
    monkeypatch.setattr(roofline.cubin, "tool", lambda: "cuobjdump")
    with RooflineRunner(H100, workers=2) as runner:

        def judged(**fates: Fate) -> list[Any]:
            monkeypatch.setattr(Compiler, "fates", fates, raising=False)
            configs: list[Config] = [{"FATE": name} for name in fates]
            found = list(outcomes(runner, WORKLOAD, "triton.pointwise", configs))
            assert [outcome.config for outcome in found] == configs
            return found

        yield judged


def test_the_predicted_time_is_an_estimate_that_nothing_checked(
    judge: Callable[..., list[Any]],
) -> None:
    expected = predict(LAUNCHED, moved_bytes(WORKLOAD), H100.gpu, "float16", MEASURED).seconds
    one, two = judge(one=(LAUNCHED,), two=(LAUNCHED, LAUNCHED))
    assert one.seconds == (expected,)
    assert two.seconds == (2 * expected,)  # every launch costs its node, too
    assert not one.checked
    assert one.error is None


def test_what_spills_or_does_not_fit_is_no_kernel_to_ship(
    judge: Callable[..., list[Any]],
) -> None:
    spilling, large, one_of_two = judge(
        spilling=(SPILLING,), large=(TOO_LARGE,), one_of_two=(LAUNCHED, SPILLING)
    )
    for outcome in (spilling, large, one_of_two):
        assert outcome.seconds == ()
        assert outcome.error.startswith("invalid: ")
    assert "64 bytes a thread" in spilling.error
    assert "less shared" in large.error


def test_a_compiler_may_fail_crash_or_hang(judge: Callable[..., list[Any]]) -> None:
    failed, crashed, hung, good = judge(
        failed=WorkerError("ValueError: asks for too much"),
        crashed=WorkerCrash("worker process ended with status -11"),
        hung=WorkerTimeout("no answer after 60 s"),
        good=(LAUNCHED,),
    )
    assert failed.error == "compile: ValueError: asks for too much"
    assert crashed.error.startswith("compile: worker")
    assert hung.error.startswith("timeout: ")
    assert good.seconds


def test_the_protocol_names_what_predictions_rest_on(judge: Callable[..., list[Any]]) -> None:
    with RooflineRunner(H100, workers=1) as runner:
        stored = asdict(runner.trial)
        assert stored["measured"] == asdict(MEASURED)
        assert runner.compete([], []) == []
        assert runner.threads == 1
        assert flops(WORKLOAD) / runner.peak_flops("float16") < 1e-6
        assert runner.peak_flops("float32") == H100.gpu.tensor_tf32_flops


@pytest.mark.parametrize(
    ("estimator", "target"),
    [("instructions", H100), ("mca", H100), ("roofline", None)],
)
def test_an_estimator_of_another_kind_of_machine_is_refused(estimator: str, target: Any) -> None:
    from targets import arm64

    with pytest.raises(UsageError, match=estimator):
        runner_at(Site(estimator=estimator), target or arm64.DEVICES["cortex-a76"])
