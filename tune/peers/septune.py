"""Our own library, loaded as an application loads it."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import numpy as np

from tune import runtime
from tune.cuda import DEFAULT_STREAM
from tune.errors import UsageError
from tune.peers import Array, Job, as_input


def version() -> str:
    return f"tvm {metadata.version('apache-tvm')}"


def prepare(job: Job) -> Library:
    """The network in `job.library`. UsageError when none is named, or as `runtime.load` says."""
    if job.library is None:
        raise UsageError("no library is given; expected a .so that build has written; name one")
    network = runtime.load(job.library, threads=job.threads)
    return Library(network, stream=DEFAULT_STREAM if job.place == "cuda" else None)


class Library:
    def __init__(self, network: runtime.Network, stream: int | None) -> None:
        self._network = network
        self.stream = stream

    def bind(self, x: Array) -> None:
        self._x = self._network.bind(as_input(x, self._network.dtype))

    def run(self) -> Any:
        return self._network.run(self._x)

    def logits(self, y: Any) -> Array:
        logits: Array = y.numpy().astype(np.float32, copy=False)
        return logits
