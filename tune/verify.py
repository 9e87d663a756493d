"""A candidate against the reference: no time counts without a right answer."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.reference import Array, reference
from kernels.tolerance import tolerance
from kernels.workload import Separable, Workload


@lru_cache(maxsize=4)
def case(workload: Workload) -> tuple[Array, tuple[Array, ...], Array]:
    """x and weights in canonical layouts and the reference's y; the same ones at every call.

    Unit variance all through, as `kernels.tolerance` assumes; no value has more digits than the
    workload's dtype.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal(workload.x_shape, np.float32).astype(workload.dtype)
    weights: list[Array] = []
    stages: tuple[Workload, ...] = (workload,)
    if isinstance(workload, Separable):
        stages = (workload.depthwise, workload.pointwise)
    for stage in stages:
        filter_shape, bias_shape = stage.weight_shapes
        wt = rng.standard_normal(filter_shape, np.float32) / np.float32(stage.terms**0.5)
        bias = rng.standard_normal(bias_shape, np.float32).astype(workload.dtype)
        weights += [wt.astype(workload.dtype), bias.astype(np.float32)]
    return x, tuple(weights), reference(workload, x, weights)


def difference(workload: Workload, y: Array) -> str | None:
    """What is wrong with the output `y` of `case(workload)`, or None when it is right."""
    expected = case(workload)[-1].astype(np.float64)
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
