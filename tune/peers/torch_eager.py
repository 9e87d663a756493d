"""PyTorch, eager, in its default NCHW format: what a researcher's checkpoint runs on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tune import eager
from tune.peers import Array, Job


def version() -> str:
    return str(torch.__version__)


def prepare(job: Job) -> Eager:
    """The module as it was trained: batch norm unfolded, NCHW."""
    use_threads(job.threads)
    return Eager(eager.from_weights(job.weights, job.model), **placed(job))


def placed(job: Job) -> dict[str, Any]:
    """Where `Eager` computes, and in which dtype."""
    return {"dtype": getattr(torch, job.model.dtype), "place": job.place}


def use_threads(threads: int) -> None:
    """Give torch `threads` within an operator and one across; keep every product in float32."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # torch lets it be set only once
        torch.set_num_interop_threads(1)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True  # look for the fastest algorithm of each convolution


class Eager:
    """A module, called on an NCHW tensor of `dtype` laid out as `memory_format`."""

    def __init__(
        self,
        module: torch.nn.Module,
        memory_format: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
        place: str = "cpu",
    ) -> None:
        self._module = module.eval().to(device=place, dtype=dtype, memory_format=memory_format)
        self._memory_format = memory_format
        self._dtype = dtype
        self._place = place
        self.stream = torch.cuda.current_stream().cuda_stream if place == "cuda" else None

    def replaced(self, module: torch.nn.Module) -> Eager:
        """The same with another form of its module."""
        self._module = module
        return self

    def bind(self, x: Array) -> None:
        nchw = torch.from_numpy(x).permute(0, 3, 1, 2).to(self._dtype)
        # A copy first: a permuted NHWC array already counts as channels_last.
        self._x = nchw.clone(memory_format=self._memory_format).to(self._place)

    def run(self) -> torch.Tensor:
        with torch.inference_mode():
            y: torch.Tensor = self._module(self._x)
        return y

    def logits(self, y: torch.Tensor) -> Array:
        logits: Array = y.cpu().numpy().astype(np.float32, copy=False)
        return logits
