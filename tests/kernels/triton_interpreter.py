"""Cases in Triton's interpreter, one at a time, in a process that has it instead of the compiler.

Triton decides that when a kernel's module is imported, for the whole process: `interpret` comes
first, and this module imports no kernel by itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import kernel
from kernels.reference import Array, reference
from kernels.space import Config
from kernels.tolerance import HALF_UNIT, UNIT
from kernels.workload import Separable, Workload
from targets.target import Target
from tune.verify import case

STRENGTH = 4  # of inputs and biases, so that ReLU6 cuts; errors grow with it
FENCE = 64  # values around each argument that are NaN: reading one shows, and so does writing one


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel's config on a workload. `plant` makes it wrong, see `planted`."""

    workload: Workload
    name: str
    config: Config
    target: Target
    plant: bool = False

    def __str__(self) -> str:
        values = "-".join(str(value) for value in self.config.values())
        return f"{self.workload.key}/{self.target.device}/{values}"


def interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    torch.set_num_threads(1)
    # Then scratch memory starts as NaN.
    torch.use_deterministic_algorithms(True)


def outcome(each: Case) -> str | None:
    """What is wrong with what the interpreter makes of a case, or None. Runs in a worker."""
    import torch

    from kernels.triton.run import run

    workload: Workload = each.workload
    module: Any = kernel(each.name)
    x, weights = strong(workload)
    expected = reference(workload, x, weights).astype(np.float64)
    packed = module.pack(workload, each.config, planted(weights) if each.plant else weights)
    call = module.call(workload, each.config, each.target)
    given = [
        np.asarray(array) for array in (x, *packed, np.full(workload.y_shape, np.nan, x.dtype))
    ]
    shaped = [a.reshape(t.shape) for a, t in zip(given, call.arguments, strict=True)]
    fences = [fenced(array) for array in shaped]
    run(call, [torch.from_numpy(inside) for inside, _ in fences])

    y = fences[-1][0].reshape(workload.y_shape)
    off = np.abs(y.astype(np.float64) - expected)
    if not np.all(off <= allowed(workload)):  # not so for a NaN
        return f"off by {np.nanmax(off):.3g} where {allowed(workload):.3g} is allowed"
    for (inside, memory), before in zip(fences[:-1], shaped[:-1], strict=True):
        if not np.array_equal(inside, before):
            return "an argument was written to"
        if np.isnan(memory).sum() != memory.size - inside.size:
            return "what lies around an argument was written to"
    memory = fences[-1][1]
    if np.isnan(memory).sum() != memory.size - y.size:
        return "what lies around the output was written to"
    return None


def strong(workload: Workload) -> tuple[Array, tuple[Array, ...]]:
    """x and weights as `kernels.tolerance` assumes, but for the strength of x and biases."""
    x, weights, _ = case(workload)
    return x * x.dtype.type(STRENGTH), tuple(
        array * array.dtype.type(STRENGTH) if array.ndim == 1 else array for array in weights
    )


def planted(weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """The filter that sums first lacks its last tap, or its last term."""
    wt = weights[0].copy()
    wt[(-1,) * (wt.ndim - 1)] = 0
    return wt, *weights[1:]


def allowed(workload: Workload) -> float:
    """How far a kernel may be off that sums in float32 and rounds what it stores."""
    exact = 24 * UNIT * (2 * workload.terms) ** 0.5
    rounded = 2 if isinstance(workload, Separable) else 1
    return STRENGTH * (exact + (8 * HALF_UNIT * rounded if workload.dtype == "float16" else 0))


def fenced(array: Array) -> tuple[Array, Array]:
    """A copy of `array` amid NaNs, its first element on 16 bytes, and all of that memory."""
    memory = np.full(array.size + 2 * FENCE + 16, np.nan, array.dtype)
    start = FENCE + (-(memory.ctypes.data // array.itemsize + FENCE)) % (16 // array.itemsize)
    inside = memory[start : start + array.size].reshape(array.shape)
    inside[...] = array
    return inside, memory
