"""What every contender's logits are compared with, and how far off they may be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kernels.tolerance import network_tolerance
from tune.errors import SetupError
from tune.peers import REFERENCE, Array, Job, Peer
from tune.peers.process import PeerFailed, Process


def expected_logits(job: Job, timeout_s: float, reference: Peer = REFERENCE) -> Array:
    """The reference's logits (N, classes), computed in a process of its own.

    Of images that are equal bit by bit, it computes one. SetupError when it has no logits.
    """
    places: dict[bytes, int] = {}
    which = [places.setdefault(image.tobytes(), len(places)) for image in job.x]
    first = [which.index(number) for number in range(len(places))]
    job = replace(job, x=job.x[first], model=replace(job.model, batch=len(first)))
    with Process(job.threads) as process:
        try:
            _, y = process.ask("prepare", reference, job, timeout_s=timeout_s)
        except PeerFailed as failure:
            raise SetupError(
                f"the reference has no result: {failure}; expected PyTorch to compute it; "
                f"run: pip install torch==2.13.0"
            ) from None
    logits: Array = y[which]
    return logits


def difference(job: Job, y: Array, expected: Array) -> float:
    """The largest difference of a logit from the expected one. PeerFailed when it is too large."""
    if y.shape != expected.shape:
        raise PeerFailed(f"its logits have shape {y.shape}; expected {expected.shape}")
    off = float(np.max(np.abs(y - expected)))
    allowed = network_tolerance(
        job.model.dtype,
        [layer.workload.terms for layer in job.model.layers],
        scale=float(np.max(np.abs(expected))),
    )
    if not off <= allowed:  # so that a NaN is wrong too
        raise PeerFailed(f"its logits are off by {off:.3g}; expected at most {allowed:.3g}")
    return off
