"""A candidate against the reference: no time counts without a right answer."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.reference import Array, Sums, reference
from kernels.tolerance import tolerance
from kernels.workload import Separable, Workload

# Different images of a batch; a larger one repeats them, for the reference takes its time. A prime,
# so that tiles, which are powers of two, lie differently in each.
IMAGES = 5


@lru_cache(maxsize=4)
def case(workload: Workload) -> tuple[Array, tuple[Array, ...], Array]:
    """x and weights in canonical layouts and the reference's y; the same ones at every call.

    Unit variance all through, as `kernels.tolerance` assumes; no value has more digits than the
    workload's dtype.
    """
    x, weights, y = few(workload)
    images = np.arange(workload.N) % IMAGES
    whole = workload.N > IMAGES
    return x[images] if whole else x, weights, y[images] if whole else y


@lru_cache(maxsize=64)  # a network's: at batch 256 the reference takes a second for some of them
def few(workload: Workload) -> tuple[Array, tuple[Array, ...], Array]:
    """The same with the first IMAGES images alone, which a larger batch repeats."""
    some = replace(workload, N=min(workload.N, IMAGES))
    rng = np.random.default_rng(0)
    x = rng.standard_normal(some.x_shape, np.float32).astype(workload.dtype)
    weights: list[Array] = []
    stages: tuple[Workload, ...] = (workload,)
    if isinstance(workload, Separable):
        stages = (workload.depthwise, workload.pointwise)
    for stage in stages:
        filter_shape, bias_shape = stage.weight_shapes
        wt = rng.standard_normal(filter_shape, np.float32) / np.float32(stage.terms**0.5)
        bias = rng.standard_normal(bias_shape, np.float32).astype(workload.dtype)
        weights += [wt.astype(workload.dtype), bias.astype(np.float32)]
    y = reference(some, x, weights)
    return x, tuple(weights), y


def difference(workload: Workload, y: Array, known: Array | None = None) -> str | None:
    """What is wrong with the output `y` of `case(workload)`, or None when it is right.

    known  the first images of an output that was right
    """
    expected = few(workload)[-1]
    y = y.reshape((workload.N, *expected.shape[1:]))
    for first in range(0, workload.N, IMAGES):
        part = y[first : first + IMAGES]
        right = y if first else known
        if right is not None and np.array_equal(_bits(part), _bits(right[: len(part)])):
            continue
        found = _difference(workload, part, expected[: len(part)].astype(np.float64), first)
        if found is not None:
            return found
    return None


def _difference(workload: Workload, y: Array, expected: Sums, first: int) -> str | None:
    """The same of some images, the `first` and those behind it."""
    off = np.abs(y - expected)
    allowed = tolerance(workload.dtype, workload.terms)
    if np.all(off <= allowed):  # not so for a NaN
        return None
    where = np.unravel_index(np.argmax(np.where(np.isnan(off), np.inf, off)), off.shape)
    image, *place = (int(index) for index in where)
    return (
        f"output {(first + image, *place)} is {y[where]:.6g}; "
        f"expected {expected[where]:.6g} within {allowed:.2g}"
    )


def _bits(array: Array) -> NDArray[Any]:
    """In pieces of 8 bytes where they come out even: several times as fast to compare."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8 if flat.nbytes % 8 else np.uint64)
