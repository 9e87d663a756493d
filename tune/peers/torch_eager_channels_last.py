"""PyTorch, eager, weights and activations in channels_last format."""

from __future__ import annotations

import torch

from tune import eager
from tune.peers import Job
from tune.peers.torch_eager import Eager, placed, use_threads, version

__all__ = ["prepare", "version"]


def prepare(job: Job) -> Eager:
    """The module of torch-eager, NHWC in memory."""
    use_threads(job.threads)
    module = eager.from_weights(job.weights, job.model)
    return Eager(module, torch.channels_last, **placed(job))
