"""The reference: the module of torch-eager in float64, the same weights widened."""

from __future__ import annotations

import torch

from tune import eager
from tune.peers import Job
from tune.peers.torch_eager import Eager, use_threads, version

__all__ = ["prepare", "version"]


def prepare(job: Job) -> Eager:
    """The module of torch-eager, every value float64 until the output is rounded to float32."""
    use_threads(job.threads)
    return Eager(eager.from_weights(job.weights, job.model), dtype=torch.float64)
