"""The judge itself, judged: by PyTorch in float64, and by sums small enough to do in one's head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kernels.reference import reference
from kernels.workload import ACTIVATIONS, Conv, Depthwise, Head, Pad, Pointwise, Separable, Workload

PADS: tuple[Pad, ...] = ((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 2))
WINDOWS = [
    {"N": N, "Hi": 9, "Wi": 6, "K": 3, "stride": stride, "pad": pad}
    for N in (1, 3)
    for stride in (1, 2)
    for pad in PADS
]
WORKLOADS: list[Workload] = [
    *(Conv(Ci=3, Co=5, **window) for window in WINDOWS),  # type: ignore[arg-type]
    *(Depthwise(C=5, **window) for window in WINDOWS),  # type: ignore[arg-type]
    *(Pointwise(N=N, H=4, W=7, Ci=11, Co=6) for N in (1, 3)),
    *(Head(N=N, H=4, W=7, Ci=11, Co=6) for N in (1, 3)),
    Conv(N=1, Hi=8, Wi=8, Ci=2, Co=3, K=1, stride=1, pad=(0, 0, 0, 0)),
    Conv(N=2, Hi=8, Wi=5, Ci=2, Co=3, K=5, stride=3, pad=(4, 0, 1, 3)),
    Depthwise(N=2, Hi=1, Wi=1, C=3, K=3, stride=2, pad=(1, 1, 1, 1)),
    Depthwise(N=2, Hi=8, Wi=5, C=3, K=4, stride=1, pad=(1, 2, 2, 1)),
    Separable(N=2, Hi=8, Wi=5, C=3, Co=7, stride=2, pad=(0, 1, 2, 1)),
]


def in_torch(workload: Workload, x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    if isinstance(workload, Separable):
        between = in_torch(workload.depthwise, x, *weights[:2])
        return in_torch(workload.pointwise, between, *weights[2:])
    wt, bias = weights
    channels_first = x.permute(0, 3, 1, 2)
    match workload:
        case Conv() | Depthwise():
            top, bottom, left, right = workload.pad
            padded = F.pad(channels_first, (left, right, top, bottom))
            groups, filters = 1, wt
            if isinstance(workload, Depthwise):
                groups, filters = workload.C, wt[:, :, None]
            sums = F.conv2d(
                padded, filters.permute(3, 2, 0, 1), bias, stride=workload.stride, groups=groups
            ).permute(0, 2, 3, 1)
        case Pointwise():
            sums = F.conv2d(channels_first, wt.T[:, :, None, None], bias).permute(0, 2, 3, 1)
        case Head():
            sums = F.linear(F.adaptive_avg_pool2d(channels_first, 1).flatten(1), wt.T, bias)
    activations = {"none": lambda y: y, "relu": F.relu, "relu6": F.relu6}
    return activations[workload.activation](sums)


def arguments(workload: Workload) -> list[np.ndarray]:
    """In float64, strong enough for ReLU6 to cut."""
    rng = np.random.default_rng(0)
    shapes = (workload.x_shape, *workload.weight_shapes)
    return [rng.normal(0, 3, shape) for shape in shapes]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key)
def test_is_what_torch_computes(workload: Workload, activation: str) -> None:
    workload = replace(workload, activation=activation)
    given = arguments(workload)
    expected = in_torch(workload, *map(torch.from_numpy, given)).numpy()
    y = reference(workload, given[0], given[1:])
    assert y.shape == workload.y_shape
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11)
    if activation == "relu6" and y.size > 50:
        assert {0.0, 6.0} <= set(y.ravel().tolist())


def test_counts_neighbours() -> None:
    """Ones under a filter of ones: how many pixels of the image lie under the window."""
    x, wt, bias = np.ones((1, 3, 3, 1)), np.ones((3, 3, 1)), np.zeros(1)
    even = Depthwise(N=1, Hi=3, Wi=3, C=1, stride=1, pad=(1, 1, 1, 1), activation="none")
    below = Depthwise(N=1, Hi=3, Wi=3, C=1, stride=2, pad=(0, 2, 0, 2), activation="none")
    assert reference(even, x, (wt, bias))[0, :, :, 0].tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    assert reference(below, x, (wt, bias))[0, :, :, 0].tolist() == [[9, 3], [3, 1]]


def test_sums_in_float64_whatever_it_is_given() -> None:
    """1e8 + 1 - 1e8 is 0 in float32."""
    x = np.array([1e8, 1, -1e8], np.float32).reshape(1, 1, 1, 3)
    workload = Pointwise(N=1, H=1, W=1, Ci=3, Co=1, activation="none")
    y = reference(workload, x, (np.ones((3, 1), np.float32), np.zeros(1, np.float32)))
    assert y.dtype == np.float32
    assert y.item() == 1.0


@pytest.mark.parametrize(
    ("wrong", "shapes"),
    [
        (0, "((2, 4, 7, 11), (11, 6), (6,))"),
        (1, "((1, 4, 7, 11), (22, 6), (6,))"),
        (2, "((1, 4, 7, 11), (11, 6), (12,))"),
    ],
    ids=["x", "wt", "bias"],
)
def test_refuses_other_shapes(wrong: int, shapes: str) -> None:
    workload = Pointwise(N=1, H=4, W=7, Ci=11, Co=6)
    given = arguments(workload)
    given[wrong] = np.concatenate([given[wrong], given[wrong]])
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        reference(workload, given[0], given[1:])
    assert str(error.value) == (
        f"{workload.key}: x and weights have shapes {shapes}; "
        f"expected ((1, 4, 7, 11), (11, 6), (6,))"
    )
