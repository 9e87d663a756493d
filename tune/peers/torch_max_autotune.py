"""PyTorch compiled by Inductor, which tries many kernels a layer and captures a CUDA graph."""

from __future__ import annotations

from tune.peers import Job
from tune.peers.torch_compile import compiled
from tune.peers.torch_eager import Eager, version

__all__ = ["prepare", "version"]


def prepare(job: Job) -> Eager:
    """The module of torch-compile in the mode max-autotune."""
    return compiled(job, mode="max-autotune")
