"""PyTorch, eager, weights and activations in channels_last format."""

from __future__ import annotations

import torch

from tune import eager
from tune.peers import Job
from tune.peers.torch_eager import Eager, use_threads, version

__all__ = ["prepare", "version"]


def prepare(job: Job) -> Eager:
    """The module of torch-eager, NHWC in memory."""
    use_threads(job.threads)
    return Eager(eager.from_weights(job.weights, job.model), torch.channels_last)
