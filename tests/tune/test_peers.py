"""Every installed peer computes the network that the reference computes."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.tolerance import network_tolerance
from tune import cuda, weights
from tune.mobilenet import MobileNet
from tune.peers import GPU_PEERS, IMAGES, OURS, PEERS, REFERENCE, Array, Job, Peer
from tune.peers.judge import difference, expected_logits
from tune.peers.process import PeerFailed, Process
from tune.peers.worker import Seat

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

MODELS = {
    f"{variant}-batch{batch}": MobileNet(
        alpha=0.25, resolution=64, batch=batch, classes=10, variant=variant
    )
    for variant in ("tf", "torch")
    for batch in (1, 2)
}
SLOW = ("torch-compile",)
QUICK = [name for name in PEERS if name not in (OURS, *SLOW)]


@cache
def job(model: MobileNet) -> Job:
    """Fixed weights and images; the images strong enough for ReLU6 to cut."""
    x = np.random.default_rng(1).normal(0, 4, model.input_shape).astype(np.float32)
    return Job(model=model, weights=weights.random(model, seed=2), x=x, threads=1)


def logits(process: Process, peer: Peer, model: MobileNet) -> Array:
    _, y = process.ask("prepare", peer, job(model), timeout_s=300)
    assert process.ask("burst", 0, 1e-9, timeout_s=60)[0] > 0
    return y


@pytest.fixture(scope="module")
def expected() -> dict[MobileNet, Array]:
    with Process(threads=1) as process:
        return {model: logits(process, REFERENCE, model) for model in MODELS.values()}


@pytest.fixture(scope="module", params=QUICK)
def peer(request: pytest.FixtureRequest) -> Iterator[tuple[Process, Peer]]:
    """A peer, and one process for all its networks."""
    require(request.param)
    with Process(threads=1) as process:
        yield process, PEERS[request.param]


def require(name: str) -> None:
    """Skip when a package of that peer is missing; fail instead where CI promises all of them."""
    missing = [package for package in PEERS[name].packages if find_spec(package) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{name} needs {', '.join(missing)}; expected all of the extra `peers` in CI")
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")


def allowed(model: MobileNet, y: Array) -> float:
    terms = [layer.workload.terms for layer in model.layers]
    return network_tolerance(model.dtype, terms, scale=float(np.max(np.abs(y))))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_peer_computes_what_the_reference_computes(
    peer: tuple[Process, Peer], model: MobileNet, expected: dict[MobileNet, Array]
) -> None:
    y = logits(*peer, model)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected[model], rtol=0, atol=allowed(model, expected[model]))


@pytest.mark.slow
def test_compiled_pytorch_computes_what_the_reference_computes() -> None:
    model = MobileNet(alpha=0.25, resolution=32, classes=10, body="shallow")
    with Process(threads=1) as judge, Process(threads=1) as process:
        expected = logits(judge, REFERENCE, model)
        y = logits(process, PEERS["torch-compile"], model)
    np.testing.assert_allclose(y, expected, rtol=0, atol=allowed(model, expected))


def test_what_a_peer_may_not_do_exceeds_the_tolerance(expected: dict[MobileNet, Array]) -> None:
    tf, torch = MODELS["tf-batch1"], MODELS["torch-batch1"]
    other_padding = np.abs(expected[tf] - expected[torch]).max()
    with Process(threads=1) as process:
        x = job(tf).x.astype(np.float16).astype(np.float32)
        _, y = process.ask("prepare", REFERENCE, replace(job(tf), x=x), timeout_s=60)
    half_precision = np.abs(expected[tf] - y).max()
    assert min(other_padding, half_precision) > allowed(tf, expected[tf])


def test_the_table_names_modules_and_packages_that_the_project_declares() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["peers"]]
    names = {re.split("[<>=]", requirement)[0].replace("-", "_") for requirement in declared}
    for peer in (*PEERS.values(), REFERENCE):
        assert find_spec(peer.module) is not None
        assert set(peer.packages) <= names


def test_a_missing_package_skips_but_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PEERS, "ghost", Peer("tune.peers.ghost", ("no_such_package",)))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_package"):
        require("ghost")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no_such_package"):
        require("ghost")


def test_the_reference_computes_each_image_once_and_all_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MobileNet(alpha=0.25, resolution=32, batch=3 * IMAGES + 1, classes=10, body="shallow")
    job = Job.at_random(model, weights.random(model, seed=2), threads=1, seed=3)
    assert len(np.unique(job.x, axis=0)) == IMAGES
    one = replace(model, batch=1)
    assert (job.x[:1] == Job.at_random(one, job.weights, threads=1, seed=3).x).all()
    ask, asked = Process.ask, []

    def noting(process: Process, method: str, peer: Peer, given: Job, **options: Any) -> Any:
        asked.append((given.model.batch, len(given.x)))
        return ask(process, method, peer, given, **options)

    monkeypatch.setattr(Process, "ask", noting)
    y = expected_logits(job, timeout_s=300)
    assert asked == [(IMAGES, IMAGES)]
    with Process(threads=1) as process:
        _, whole = ask(process, "prepare", REFERENCE, job, timeout_s=300)
    np.testing.assert_allclose(y, whole, rtol=1e-6)
    assert difference(job, whole, y) < 1e-5
    for wrong in (np.roll(whole, 1, axis=0), np.roll(whole, 8, axis=0)):
        with pytest.raises(PeerFailed, match="its logits are off by"):
            difference(job, wrong, y)
    whole[-1, -1] += 1
    with pytest.raises(PeerFailed, match="its logits are off by"):
        difference(job, whole, y)


def test_our_contender_needs_a_library() -> None:
    with Process(threads=1) as process, pytest.raises(PeerFailed, match="no library is given"):
        process.ask("prepare", PEERS[OURS], job(MODELS["tf-batch1"]), timeout_s=60)


@pytest.mark.parametrize("name", ["torch-eager", "torch-eager-channels-last"])
def test_a_gpu_peer_computes_in_the_dtype_of_the_model(name: str) -> None:
    """Tried on the CPU, where the same module computes."""
    half = replace(MODELS["tf-batch2"], dtype="float16")
    with Process(threads=1) as process:
        y = logits(process, REFERENCE, half)
        found = logits(process, GPU_PEERS[name], half)
    off = np.max(np.abs(found - y))
    assert 1e-5 < off <= allowed(half, y)  # float32 would be nearer


def test_a_gpu_peer_without_a_gpu_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in ("torch-eager", "torch-graph", "torch-max-autotune"):
        placed = replace(job(MODELS["tf-batch1"]), place="cuda")
        with Process(threads=1) as process, pytest.raises(PeerFailed, match=r"CUDA|NVIDIA"):
            process.ask("prepare", GPU_PEERS[name], placed, timeout_s=60)


def test_onnx_graph_in_half() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tune.peers.conv2d import nchw_layout
    from tune.peers.onnx_graph import model_bytes

    half = replace(MODELS["tf-batch2"], dtype="float16")
    session = onnxruntime.InferenceSession(
        model_bytes(job(half)), providers=["CPUExecutionProvider"]
    )
    [x], [y] = session.get_inputs(), session.get_outputs()
    assert (x.type, y.type) == ("tensor(float16)",) * 2
    [found] = session.run(None, {x.name: nchw_layout(job(half).x).astype(np.float16)})
    with Process(threads=1) as process:
        expected = logits(process, REFERENCE, half)
    assert np.max(np.abs(found - expected)) <= allowed(half, expected)


def test_times_on_a_stream_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stopwatch of the contender's stream, one sample a call."""
    calls: list[tuple[int, Any]] = []

    class Watch:
        def __init__(self, stream: int) -> None:
            self.stream = stream

        def seconds(self, work: Any) -> float:
            calls.append((self.stream, work))
            work()
            return 0.25

    class OnGpu:
        stream = 7
        runs = 0

        def run(self) -> None:
            self.runs += 1

    monkeypatch.setattr(cuda, "Stopwatch", Watch)
    seat = Seat()
    seat._contender = OnGpu()  # type: ignore[assignment]
    assert seat.burst(2, 1.0) == [0.25] * 4
    assert seat._contender.runs == 6  # type: ignore[attr-defined]
    assert [stream for stream, _ in calls] == [7] * 4
