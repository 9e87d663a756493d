"""The GPU's runner on a device made of host memory: right candidates have times, others reasons.

Times mean nothing there; that events, graphs and copies are used as they have to be does.
"""

from __future__ import annotations

import subprocess
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_device
import numpy as np
import pytest
from measuring import outcomes

from kernels.space import Config
from kernels.workload import Depthwise, Pointwise, Separable, Workload, moved_bytes
from targets import machines
from targets.target import Target
from tune import builder, ceilings
from tune.errors import SetupError
from tune.pipeline.site import Site, runner_at
from tune.runners import builders, gpu, graphs
from tune.runners.candidate import Candidate
from tune.runners.gpu import DATASHEET, MATMUL, GpuRunner
from tune.runners.protocol import Entry, Outcome
from tune.runners.worker import Worker
from tune.verify import IMAGES, case, few

H100 = machines("cuda").DEVICES["h100"]
POINTWISE = Pointwise(N=1, H=2, W=4, Ci=16, Co=32)
WHOLE: Config = {"BLOCK_CI": 16, "BLOCK_CO": 32, "BLOCK_C": 16}  # weights need no padding
DEPTHWISE = Depthwise(N=1, Hi=2, Wi=4, C=16, stride=1, pad=(1, 1, 1, 1))
SEPARABLE = Separable.of(DEPTHWISE, POINTWISE)
Shapes = tuple[tuple[int, ...], ...]

# One thread an output, in 8 blocks, one a pixel.
POINTWISE_KERNEL = """
@T.prim_func(s_tir=True)
def main(x: T.Buffer((8, 16), "float32"), wt: T.Buffer((16, 32), "float32"),
         bias: T.Buffer((32,), "float32"), y: T.Buffer((8, 32), "float32")):
    T.func_attr({{"tirx.noalias": True, "tirx.is_scheduled": True}})
    for p in T.thread_binding(8, thread="blockIdx.x"):
        for co in T.thread_binding(32, thread="threadIdx.x"):
            acc = T.alloc_buffer((1,), "float32", scope="local")
            acc[0] = bias[co]
            for ci in T.serial(16):
                acc[0] = acc[0] + x[p, ci] * wt[ci, co]
            {store}
"""
RELU6 = "T.min(T.max(acc[0], T.float32(0)), T.float32(6))"
STORES = {
    "right": f"y[p, co] = {RELU6}",
    "no activation": "y[p, co] = acc[0]",
    "out of bounds": f"y[p + 8, co] = {RELU6}",
    # Where y is no NaN any more.
    "later wrong": f"y[p, co] = T.if_then_else(y[p, co] >= -1.0, y[p, co] + 1.0, {RELU6})",
}
DEPTHWISE_KERNEL = """
@T.prim_func(s_tir=True)
def main(x: T.Buffer((2, 4, 16), "float32"), wt: T.Buffer((3, 3, 16), "float32"),
         bias: T.Buffer((16,), "float32"), y: T.Buffer((2, 4, 16), "float32")):
    T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
    for p in T.thread_binding(8, thread="blockIdx.x"):
        for c in T.thread_binding(16, thread="threadIdx.x"):
            acc = T.alloc_buffer((1,), "float32", scope="local")
            acc[0] = bias[c]
            for kh, kw in T.grid(3, 3):
                if p // 4 + kh >= 1 and p // 4 + kh < 3 and p % 4 + kw >= 1 and p % 4 + kw < 5:
                    acc[0] = acc[0] + x[p // 4 + kh - 1, p % 4 + kw - 1, c] * wt[kh, kw, c]
            y[p // 4, p % 4, c] = RELU6
""".replace("RELU6", RELU6)
SEPARABLE_KERNEL = """
@T.prim_func(s_tir=True)
def main(x: T.Buffer((2, 4, 16), "float32"), wt1: T.Buffer((3, 3, 16), "float32"),
         bias1: T.Buffer((16,), "float32"), wt2: T.Buffer((16, 32), "float32"),
         bias2: T.Buffer((32,), "float32"), y: T.Buffer((8, 32), "float32")):
    T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
    for p in T.thread_binding(8, thread="blockIdx.x"):
        for co in T.thread_binding(32, thread="threadIdx.x"):
            acc = T.alloc_buffer((1,), "float32", scope="local")
            sums = T.alloc_buffer((1,), "float32", scope="local")
            sums[0] = bias2[co]
            for c in T.serial(16):
                acc[0] = bias1[c]
                for kh, kw in T.grid(3, 3):
                    if p // 4 + kh >= 1 and p // 4 + kh < 3 and p % 4 + kw >= 1 and p % 4 + kw < 5:
                        acc[0] = acc[0] + x[p // 4 + kh - 1, p % 4 + kw - 1, c] * wt1[kh, kw, c]
                sums[0] = sums[0] + RELU6 * wt2[c, co]
            acc[0] = sums[0]
            y[p, co] = RELU6
""".replace("RELU6", RELU6)
LIBRARY = """
#include <stdlib.h>
#include <unistd.h>
int __tvm_ffi_main(void *self, void *arguments, int count, void *result) {{ {body} return 0; }}
"""
BODIES = {"abort": "abort();", "hang": "for (;;) pause();"}


def build(workload: Workload, name: str, config: Config, target: Target, path: Path) -> Shapes:
    """In a builder's process: a library that meets the fate its config names."""
    fate = str(config["FATE"])
    if fate == "refused":
        raise ValueError("asks for too much")
    if fate in BODIES:
        source = path.with_suffix(".c")
        source.write_text(LIBRARY.format(body=BODIES[fate]))
        command = [*builder.linker(target), "-x", "c", "-shared", "-fPIC", "-o", path, source]
        subprocess.run(command, check=True)
        return ((8, 16), (16, 32), (32,), (8, 32))
    import tvm

    _activate()
    text = POINTWISE_KERNEL.format(store=STORES[fate])
    if not isinstance(workload, Pointwise):
        text = DEPTHWISE_KERNEL if isinstance(workload, Depthwise) else SEPARABLE_KERNEL
    scheduled = tvm.script.from_source(text, check_well_formed=False)
    with target.tvm():
        executable = tvm.compile(tvm.IRModule({"main": scheduled}), target=target.tvm())
    builder.export(executable, target, path)
    return builder.argument_shapes(scheduled)


def _activate() -> None:
    """Once in a process."""
    if not cuda_device._KEPT:
        cuda_device.activate()


def time_alone(*arguments: Any) -> Outcome:
    _activate()
    return graphs.time_alone(*arguments)


def time_in_turns(*arguments: Any) -> list[Outcome]:
    _activate()
    return graphs.time_in_turns(*arguments)


def check(*arguments: Any) -> Outcome:
    _activate()
    return graphs.check(*arguments)


def launches_of(step: Callable[..., Any], *arguments: Any) -> list[Any]:
    """In a worker: what a step launches, all that runs by itself first."""
    _activate()
    cuda_device.launches()
    step(*arguments)
    return cuda_device.launches()


@pytest.fixture(scope="module")
def runner() -> Iterator[GpuRunner]:
    """One for all tests: each must leave it usable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders, "build", build)
        for step in (time_alone, time_in_turns, check):
            patch.setattr(gpu, step.__name__, step)
        # Its second-level cache is small, for copies have fences, and a launch checks them all.
        small = replace(H100, limits=replace(H100.gpu, l2_bytes=8 << 10))
        with GpuRunner(small, builders=2) as runner:
            yield runner


def entry(workload: Workload, fate: str = "right", **knobs: int) -> Entry:
    name = f"triton.{type(workload).__name__.lower()}"
    return Entry(workload=workload, kernel=name, config={"FATE": fate} | WHOLE | knobs)


def measured(runner: GpuRunner, fate: str) -> Outcome:
    asked = entry(POINTWISE, fate)
    [outcome] = outcomes(runner, POINTWISE, asked.kernel, [asked.config])
    assert outcome.config == asked.config
    return outcome


def failed(runner: GpuRunner, fate: str) -> str:
    """Why the candidate failed; the next one does not."""
    outcome = measured(runner, fate)
    assert (outcome.seconds, outcome.checked) == ((), False)
    assert measured(runner, "right").error is None
    assert outcome.error is not None
    return outcome.error


def test_right_candidate_has_times(runner: GpuRunner) -> None:
    outcome = measured(runner, "right")
    assert (outcome.error, outcome.checked) == (None, True)
    assert len(outcome.seconds) == runner.trial.repeat
    assert all(second > 0 for second in outcome.seconds)


def test_wrong_candidates_have_none(runner: GpuRunner) -> None:
    assert failed(runner, "no activation").startswith("wrong: output (0, ")
    assert failed(runner, "later wrong").startswith("wrong: in a later run, output (0, ")
    assert failed(runner, "refused") == "compile: ValueError: asks for too much"


def test_candidate_that_writes_elsewhere_costs_its_process(
    runner: GpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(runner, "right")
    before = runner._bench._process.pid
    assert failed(runner, "out of bounds").startswith("run: ")
    assert runner._bench._process.pid != before


def test_candidate_that_crashes_or_hangs(
    runner: GpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert failed(runner, "abort") == "run: worker process ended with status -6"
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "RUN_TIMEOUT_S", 5.0)
        assert measured(runner, "hang").error == "timeout: no answer after 5 s"
    assert measured(runner, "right").error is None


def test_a_check_takes_no_time(runner: GpuRunner) -> None:
    right, wrong = runner.check([entry(POINTWISE), entry(POINTWISE, "no activation")])
    assert (right.error, right.checked, right.seconds) == (None, True, ())
    assert str(wrong.error).startswith("wrong: ")


def candidate_of(worker: Worker, asked: Entry, library: Path) -> Candidate:
    arguments = (asked.workload, asked.kernel, asked.config, H100, library)
    shapes = worker.call(build, *arguments, timeout_s=60)
    return Candidate(
        workload=asked.workload,
        kernel=asked.kernel,
        config=asked.config,
        library=library,
        shapes=shapes,
    )


def test_candidates_of_a_workload_are_timed_on_the_same_copies(
    runner: GpuRunner, tmp_path: Path
) -> None:
    worker = Worker()
    try:
        places = []
        for fate in ("right", "right", "later wrong"):
            assert worker.call(kept, timeout_s=60) == min(1, len(places))
            candidate = candidate_of(worker, entry(POINTWISE, fate), tmp_path / f"{len(places)}.so")
            steps = (launches_of, graphs.time_alone, candidate, runner.trial)
            launched = worker.call(*steps, timeout_s=60)
            places.append({each.arguments for each in launched if each.graph})
        assert places[0] == places[1]
        assert worker.call(kept, timeout_s=60) == 0  # where the wrong one may have written, too
        assert worker.call(outlives, timeout_s=60) is False
    finally:
        worker.stop()


def kept() -> int:
    return graphs._kept.cache_info().currsize


def outlives() -> bool:
    """In a worker: whether copies are still there when another workload's turn has come."""
    _activate()
    weights = tuple(few(POINTWISE)[1])
    copies = graphs._kept(POINTWISE)
    one, *_ = copies.weights(1, weights)
    assert copies.weights(1, tuple(array.copy() for array in weights))[0] is one
    other, *_ = copies.weights(1, (weights[0] + 1, *weights[1:]))
    np.testing.assert_array_equal(other.numpy(), weights[0] + 1)
    for shape in ((8, 32), (1, 2, 4, 32)):
        y = copies.unwritten(shape)
        assert y.shape == shape
        assert np.isnan(y.numpy()).all()
        y.copyfrom(np.zeros(shape, "float32"))
    left = weakref.ref(copies)
    del copies, one, other, y
    graphs._kept(DEPTHWISE)
    return left() is not None


def test_the_gpu_repeats_the_images_of_a_batch() -> None:
    worker = Worker()
    try:
        many = replace(POINTWISE, N=2 * IMAGES + 1)
        x, rolled = worker.call(inputs_of, many, timeout_s=60)
    finally:
        worker.stop()
    np.testing.assert_array_equal(x, case(many)[0])
    assert sorted(rolled[:IMAGES].ravel()) == sorted(x[:IMAGES].ravel())
    assert (rolled != x).any()


def inputs_of(workload: Workload) -> tuple[Any, Any]:
    _activate()
    copies = graphs._Copies(workload)
    return tuple(copies.x(number, workload.x_shape).numpy() for number in range(2))


def test_launches_are_graphs_of_rotating_copies(runner: GpuRunner, tmp_path: Path) -> None:
    worker = Worker()
    try:
        candidate = candidate_of(worker, entry(POINTWISE), tmp_path / "candidate.so")
        steps = (launches_of, graphs.time_alone, candidate, runner.trial)
        launched = worker.call(*steps, timeout_s=60)
    finally:
        worker.stop()
    copies = 1 + runner.trial.rotate_bytes // moved_bytes(POINTWISE)
    assert copies > 3
    warm = [launch for launch in launched if not launch.graph]
    graphed = [launch for launch in launched if launch.graph]
    turn = copies * -(-runner.trial.launches // copies)
    assert len(warm) == 1 + turn + 1  # checked, once before the capture, checked again
    assert len(graphed) % turn == 0
    assert len(graphed) >= (2 + runner.trial.repeat) * turn
    for number in range(4):  # x, wt, bias and y
        places = [launch.arguments[number] for launch in graphed]
        assert len(set(places)) == copies
        assert places == places[:copies] * (len(places) // copies)


def test_rivals_take_turns_and_the_wrong_one_has_no_time(runner: GpuRunner) -> None:
    network = [entry(DEPTHWISE), entry(POINTWISE)]
    rivals = [entry(POINTWISE, number=1), entry(POINTWISE, "no activation"), entry(POINTWISE)]
    one, wrong, two = runner.compete(network, rivals)
    for outcome, rival in zip((one, wrong, two), rivals, strict=True):
        assert outcome.config == rival.config
        assert outcome.apart_s is None
    assert len(one.seconds) == len(two.seconds) == runner.final.rounds
    assert str(wrong.error).startswith("wrong: ")
    assert wrong.seconds == ()


def test_two_in_one_are_timed_beside_the_two_apart(runner: GpuRunner) -> None:
    network = [entry(DEPTHWISE), entry(POINTWISE)]
    [outcome] = runner.compete(network, [entry(SEPARABLE)])
    assert (outcome.error, outcome.checked) == (None, True)
    assert outcome.apart_s is not None
    assert outcome.apart_s > 0
    broken = [entry(DEPTHWISE), entry(POINTWISE, "no activation")]
    [alone] = runner.compete(broken, [entry(SEPARABLE)])
    assert (alone.error, alone.apart_s) == (None, None)


def test_a_rival_that_hangs_ends_no_meeting(
    runner: GpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "TURNS_TIMEOUT_S", 15.0)
        rivals = [entry(POINTWISE), entry(POINTWISE, "hang"), entry(POINTWISE, "refused")]
        right, hangs, refused = runner.compete([entry(POINTWISE)], rivals)
    assert (right.error, hangs.error) == (None, "timeout: no answer after 15 s")
    assert len(right.seconds) == runner.final.rounds
    assert refused.error == "compile: ValueError: asks for too much"
    assert measured(runner, "right").error is None


def peak_flops(dtype: str) -> float:
    return 7e14


def no_peak(dtype: str) -> float:
    raise ModuleNotFoundError("No module named 'torch'")


def test_peak_is_measured_or_else_of_the_datasheet(
    runner: GpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "matmul_flops", peak_flops)
    assert runner.peak_flops("float16") == 7e14
    assert (runner.trial.peak, runner.final.peak) == (MATMUL, MATMUL)
    monkeypatch.setattr(ceilings, "matmul_flops", no_peak)
    assert runner.peak_flops("float16") == H100.gpu.tensor_f16_flops
    assert runner.peak_flops("float32") == H100.gpu.tensor_tf32_flops
    assert (runner.trial.peak, runner.final.peak) == (DATASHEET, DATASHEET)


def test_only_where_there_is_such_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = machines("cuda")
    monkeypatch.setattr(cuda, "can_run", lambda target: False)
    with pytest.raises(SetupError, match="cannot run code for h100"):
        runner_at(Site(), H100)
    monkeypatch.setattr(cuda, "can_run", lambda target: True)
    with runner_at(Site(), H100) as runner:
        assert isinstance(runner, GpuRunner)
        assert runner.fuses
