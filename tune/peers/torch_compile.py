"""PyTorch compiled by Inductor with frozen weights; on the CPU it needs a C++ compiler."""

from __future__ import annotations

import torch
from torch._inductor import config as inductor

from tune import eager
from tune.peers import Job
from tune.peers.torch_eager import Eager, placed, use_threads, version

__all__ = ["compiled", "prepare", "version"]


def prepare(job: Job) -> Eager:
    """The module, compiled at its first call, which takes from seconds to minutes.

    Freezing folds batch norm and packs weights in the layout that each kernel wants.
    """
    return compiled(job)


def compiled(job: Job, mode: str | None = None) -> Eager:
    """By one of Inductor's modes; on the GPU in channels_last format, which suits tensor cores."""
    use_threads(job.threads)
    inductor.freezing = True
    gpu = job.place == "cuda"
    if not gpu:
        inductor.compile_threads = 1  # a pool of compilers would outlive its work, stay beside it
    module = eager.from_weights(job.weights, job.model).eval()
    memory_format = torch.channels_last if gpu else torch.contiguous_format
    prepared = Eager(module, memory_format, **placed(job))
    return prepared.replaced(torch.compile(module, dynamic=False, mode=mode))
