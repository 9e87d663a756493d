"""PyTorch, eager, in channels_last format, its launches captured in a CUDA graph."""

from __future__ import annotations

import torch

from tune import eager
from tune.peers import Job
from tune.peers.torch_eager import placed, use_threads, version
from tune.peers.torch_graph import Graphed

__all__ = ["prepare", "version"]


def prepare(job: Job) -> Graphed:
    """The module of torch-eager-channels-last."""
    use_threads(job.threads)
    module = eager.from_weights(job.weights, job.model)
    return Graphed(module, torch.channels_last, **placed(job))
