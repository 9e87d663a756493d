"""What each workload means, in NumPy with float64 sums: the judge of every candidate.

Written to be obviously right, not fast: a window sum is a loop over the window's pixels, each turn
one strided slice of the zero-padded image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.workload import Conv, Depthwise, Head, Pointwise, Workload

Array = NDArray[np.float32]
Sums = NDArray[np.float64]


def reference(workload: Workload, x: Array, wt: Array, bias: Array) -> Array:
    """The output, shaped `workload.y_shape`, for arguments in canonical layouts.

    ValueError when an argument has another shape than the workload says.
    """
    expected = {"x": workload.x_shape, "wt": workload.wt_shape, "bias": (workload.Co,)}
    for name, array in (("x", x), ("wt", wt), ("bias", bias)):
        if array.shape != expected[name]:
            raise ValueError(
                f"{workload.key}: {name} has shape {array.shape}; expected {expected[name]}"
            )
    x64, wt64 = x.astype(np.float64), wt.astype(np.float64)
    match workload:
        case Conv():
            sums = _conv(workload, x64, wt64)
        case Depthwise():
            sums = _depthwise(workload, x64, wt64)
        case Pointwise():
            sums = x64 @ wt64
        case Head():
            sums = x64.mean(axis=(1, 2)) @ wt64
    return _activate(sums + bias.astype(np.float64), workload.activation).astype(x.dtype)


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
