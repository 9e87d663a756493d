"""A built candidate, loaded and compared with the reference. Runs in a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kernels import kernel
from kernels.space import Config
from kernels.workload import Workload
from tune.verify import case, difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A built library and what it was built from."""

    workload: Workload
    kernel: str
    config: Config = field(hash=False)
    library: Path
    shapes: tuple[tuple[int, ...], ...]  # of x, weights, y


class Loaded:
    """A candidate's function, the arguments of its case, and whether they gave the right output.

    error  None, or `wrong: …`
    """

    def __init__(self, candidate: Candidate) -> None:
        import tvm

        workload = candidate.workload
        x, weights, _ = case(workload)
        packed = kernel(candidate.kernel).pack(workload, candidate.config, weights)
        self.function = tvm.runtime.load_module(str(candidate.library))["main"]
        self.packed = packed
        self.x = tvm.runtime.tensor(x.reshape(candidate.shapes[0]))
        self.y = tvm.runtime.tensor(np.full(candidate.shapes[-1], np.nan, workload.dtype))
        self.function(self.x, *self.weights(), self.y)
        wrong = difference(workload, self.y.numpy())
        self.error = f"wrong: {wrong}" if wrong else None

    def weights(self) -> tuple[Any, ...]:
        """The packed weights in memory of their own."""
        import tvm

        return tuple(tvm.runtime.tensor(array) for array in self.packed)
