"""A candidate against the reference: no time counts without a right answer."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kernels.reference import reference
from kernels.tolerance import tolerance
from kernels.workload import Workload

Array = NDArray[np.float32]


@lru_cache(maxsize=4)
def case(workload: Workload) -> tuple[Array, Array, Array, Array]:
    """x, wt, bias in canonical layouts and the reference's y; the same ones at every call.

    Unit variance all through, as `kernels.tolerance` assumes.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal(workload.x_shape, np.float32)
    wt = rng.standard_normal(workload.wt_shape, np.float32) / np.float32(workload.terms**0.5)
    bias = rng.standard_normal(workload.Co, np.float32)
    return x, wt, bias, reference(workload, x, wt, bias)


def difference(workload: Workload, y: Array) -> str | None:
    """What is wrong with the output `y` of `case(workload)`, or None when it is right."""
    expected = case(workload)[-1]
    off = np.abs(y.reshape(expected.shape) - expected)
    allowed = tolerance(workload.dtype, workload.terms)
    if np.all(off <= allowed):  # not so for a NaN
        return None
    where = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
    position = tuple(int(index) for index in where)
    return (
        f"output {position} is {y.reshape(expected.shape)[where]:.6g}; "
        f"expected {expected[where]:.6g} within {allowed:.2g}"
    )
