"""The reference: the module of torch-eager in float64, the same weights widened."""

from __future__ import annotations

import torch

from tune import eager
from tune.peers import Job
from tune.peers.torch_eager import Eager, use_threads, version

__all__ = ["prepare", "version"]


def prepare(job: Job) -> Eager:
    """The module of torch-eager, every value float64 until the output is rounded to float32.

    On one thread: a depthwise convolution in float64 is a parallel region a channel, 5000 of them
    in the network, and each waits for whoever else is busy. One image took 0.5 s on one thread and
    41 s on two; the five of a batch take 2.4 s, the start of the process included (2 cores of an
    EPYC under a load of 4, torch 2.13, 2026-11-28).
    """
    use_threads(1)
    return Eager(eager.from_weights(job.weights, job.model), dtype=torch.float64)
