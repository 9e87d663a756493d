"""PyTorch, eager, in NCHW format, its launches captured in a CUDA graph."""

from __future__ import annotations

import torch

from tune import eager
from tune.peers import Array, Job
from tune.peers.torch_eager import Eager, placed, use_threads, version

__all__ = ["Graphed", "prepare", "version"]

WARMUP = 3  # calls before the capture, as PyTorch's manual asks for


def prepare(job: Job) -> Graphed:
    """The module of torch-eager."""
    use_threads(job.threads)
    return Graphed(eager.from_weights(job.weights, job.model), **placed(job))


class Graphed(Eager):
    """A module whose calls are one launch: it reads and writes the same memory each time."""

    def bind(self, x: Array) -> None:
        super().bind(x)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARMUP):
                super().run()
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._y = super().run()

    def run(self) -> torch.Tensor:
        self._graph.replay()
        return self._y
