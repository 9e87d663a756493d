"""Every installed peer computes the network that the reference computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest

from kernels.tolerance import network_tolerance
from tune import weights
from tune.mobilenet import MobileNet
from tune.peers import OURS, PEERS, REFERENCE, Array, Job, Peer
from tune.peers.process import PeerFailed, Process

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
