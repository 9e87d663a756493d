"""Stem, depthwise and pointwise layers as the one grouped convolution that other libraries know."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.workload import Conv, Depthwise, Pad, Pointwise
from tune.peers import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv2d:
    """A K×K convolution over `groups` groups of channels; wt (Co, Ci / groups, K, K)."""

    wt: Array
    stride: int = 1
    pad: Pad = (0, 0, 0, 0)
    groups: int = 1

    @property
    def Co(self) -> int:
        return int(self.wt.shape[0])

    @property
    def K(self) -> int:
        return int(self.wt.shape[2])


def conv2d(workload: Conv | Depthwise | Pointwise, wt: Array) -> Conv2d:
    """The layer, its weights brought from their canonical layout to OIHW."""
    match workload:
        case Conv(stride=stride, pad=pad):
            return Conv2d(wt=_dense(wt.transpose(3, 2, 0, 1)), stride=stride, pad=pad)
        case Depthwise(stride=stride, pad=pad, C=C):
            oihw = _dense(wt.transpose(2, 0, 1)[:, None])
            return Conv2d(wt=oihw, stride=stride, pad=pad, groups=C)
        case Pointwise():
            return Conv2d(wt=_dense(wt.T[:, :, None, None]))


def nchw_layout(x: Array) -> Array:
    """x (N, H, W, C) as a contiguous (N, C, H, W)."""
    return _dense(x.transpose(0, 3, 1, 2))


def _dense(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=np.float32)
