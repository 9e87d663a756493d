"""A built candidate, loaded and compared with the reference. Runs in a worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kernels import kernel
from kernels.space import Config
from kernels.workload import Workload
from tune.verify import Array, case, difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A built library and what it was built from."""

    workload: Workload
    kernel: str
    config: Config = field(hash=False)
    library: Path
    shapes: tuple[tuple[int, ...], ...]  # of x, wt, bias, y


class Loaded:
    """A candidate's function, the arguments of its case, and whether they gave the right output.

    error  None, or `wrong: …`
    """

    def __init__(self, candidate: Candidate) -> None:
        import tvm

        x, wt, bias, _ = case(candidate.workload)
        packed = kernel(candidate.kernel).pack(candidate.workload, candidate.config, wt, bias)
        self.function = tvm.runtime.load_module(str(candidate.library))["main"]
        self.packed: tuple[Array, ...] = packed
        self.x = tvm.runtime.tensor(x.reshape(candidate.shapes[0]))
        self.y = tvm.runtime.tensor(np.full(candidate.shapes[-1], np.nan, np.float32))
        self.function(self.x, *self.weights(), self.y)
        wrong = difference(candidate.workload, self.y.numpy())
        self.error = f"wrong: {wrong}" if wrong else None

    def weights(self) -> tuple[Any, ...]:
        """Packed weights and bias in memory of their own."""
        import tvm

        return tuple(tvm.runtime.tensor(array) for array in self.packed)
