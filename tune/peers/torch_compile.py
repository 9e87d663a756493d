"""PyTorch compiled by Inductor with frozen weights; needs a C++ compiler."""

from __future__ import annotations

import torch
from torch._inductor import config as inductor

from tune import eager
from tune.peers import Job
from tune.peers.torch_eager import Eager, use_threads, version

__all__ = ["prepare", "version"]


def prepare(job: Job) -> Eager:
    """The module, compiled at its first call, which takes from seconds to minutes.

    Freezing folds batch norm and packs weights in the layout that each kernel wants.
    """
    use_threads(job.threads)
    inductor.freezing = True
    inductor.compile_threads = 1  # a pool of compilers would outlive its work and stay beside it
    return Eager(torch.compile(eager.from_weights(job.weights, job.model).eval(), dynamic=False))
