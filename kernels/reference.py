"""What each workload means, in NumPy with float64 sums: the judge of every candidate.

Written to be obviously right, not fast: a window sum is a loop over the window's pixels, each turn
one strided slice of the zero-padded image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.workload import Conv, Depthwise, Head, Pointwise, Separable, Workload

Array = NDArray[Any]  # float32 or float16
Sums = NDArray[np.float64]


def reference(workload: Workload, x: Array, weights: Sequence[Array]) -> Array:
    """The output, shaped `workload.y_shape`, for arguments in canonical layouts.

    weights  filter and bias in turns

    ValueError when an argument has another shape than the workload says.
    """
    given = tuple(array.shape for array in (x, *weights))
    expected = (workload.x_shape, *workload.weight_shapes)
    if given != expected:
        raise ValueError(f"{workload.key}: x and weights have shapes {given}; expected {expected}")
    y = _output(workload, x.astype(np.float64), [array.astype(np.float64) for array in weights])
    return y.astype(x.dtype)


def _output(workload: Workload, x: Sums, weights: Sequence[Sums]) -> Sums:
    if isinstance(workload, Separable):
        between = _output(workload.depthwise, x, weights[:2])
        return _output(workload.pointwise, between, weights[2:])
    wt, bias = weights
    match workload:
        case Conv():
            sums = _conv(workload, x, wt)
        case Depthwise():
            sums = _depthwise(workload, x, wt)
        case Pointwise():
            sums = x @ wt
        case Head():
            sums = x.mean(axis=(1, 2)) @ wt
    return _activate(sums + bias, workload.activation)


def _conv(workload: Conv, x: Sums, wt: Sums) -> Sums:
    sums = np.zeros(workload.y_shape)
    for kh, kw in np.ndindex(workload.K, workload.K):
        sums += _window(workload, x, kh, kw) @ wt[kh, kw]
    return sums


def _depthwise(workload: Depthwise, x: Sums, wt: Sums) -> Sums:
    sums = np.zeros(workload.y_shape)
    for kh, kw in np.ndindex(workload.K, workload.K):
        sums += _window(workload, x, kh, kw) * wt[kh, kw]
    return sums


def _window(workload: Conv | Depthwise, x: Sums, kh: int, kw: int) -> Sums:
    """The input pixel under tap (kh, kw) of every output pixel; (N, Ho, Wo, C)."""
    top, bottom, left, right = workload.pad
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows = slice(kh, kh + workload.stride * (workload.Ho - 1) + 1, workload.stride)
    columns = slice(kw, kw + workload.stride * (workload.Wo - 1) + 1, workload.stride)
    return padded[:, rows, columns, :]


def _activate(values: Sums, activation: str) -> Sums:
    match activation:
        case "relu":
            return np.maximum(values, 0)
        case "relu6":
            return np.clip(values, 0, 6)
    return values
