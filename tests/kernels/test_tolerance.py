"""The tolerance lets every right kernel pass and no kernel that is one tap off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kernels.reference import Array, reference
from kernels.tolerance import tolerance
from kernels.workload import Conv, Depthwise, Head, Workload
from tune.mobilenet import MobileNet
from tune.verify import case

MODELS = (
    MobileNet(),
    MobileNet(variant="torch"),
    MobileNet(alpha=0.25, resolution=128),
    MobileNet(alpha=0.25, resolution=64, batch=3, classes=10),
)
WORKLOADS = dict.fromkeys(layer.workload for model in MODELS for layer in model.layers)
ALL = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.key)


def off(workload: Workload, y: Array) -> float:
    """How far `y` is from the reference's output, in tolerances."""
    expected = case(workload)[-1]
    return float(np.max(np.abs(y - expected))) / tolerance(workload.dtype, workload.terms)


def wrong_kernels(workload: Workload) -> Iterator[tuple[str, Array]]:
    """What kernels compute that are wrong by as little as a kernel can be."""
    x, (wt, bias), _ = case(workload)
    last = wt.copy()
    if isinstance(workload, Conv | Depthwise):
        for kh, kw in product(range(workload.K), repeat=2):
            dropped = wt.copy()
            dropped[kh, kw] = 0
            yield f"tap {kh},{kw} dropped", reference(workload, x, (dropped, bias))
        last[-1, -1] = wt[-1, -2]
        yield "last tap read twice", reference(workload, x, (last, bias))
        top, bottom, left, right = workload.pad
        wider = [replace(workload, pad=(bottom, top, left, right))]
        wider += [replace(workload, pad=(top, bottom, right, left))]
        if top == bottom:
            wider = [replace(workload, pad=(top - 1, bottom + 1, left, right))]
            wider += [replace(workload, pad=(top, bottom, left + 1, right - 1))]
        for other in wider:
            yield f"padded by {other.pad}", reference(other, x, (wt, bias))
    else:
        last[-1] = 0
        yield "last term dropped", reference(workload, x, (last, bias))
        swapped = wt.copy()
        swapped[[0, 1]] = wt[[1, 0]]
        yield "first terms swapped", reference(workload, x, (swapped, bias))
    if isinstance(workload, Head) and workload.H > 1:
        pooled = x.copy()
        pooled[:, -1, -1] = 0
        yield "last pixel not pooled", reference(workload, pooled, (wt, bias))


@ALL
def test_kernel_that_is_one_tap_off_is_outside(workload: Workload) -> None:
    found = {what: off(workload, y) for what, y in wrong_kernels(workload)}
    assert len(found) >= 2
    assert {what: by for what, by in found.items() if not by > 10} == {}


@ALL
def test_half_precision_is_outside(workload: Workload) -> None:
    x, (wt, bias), _ = case(workload)
    half = x.astype(np.float16).astype(np.float32)
    assert off(workload, reference(workload, half, (wt, bias))) > 1


def in_float32(workload: Workload) -> Array:
    """All in float32, one term after the other, as a kernel sums: no BLAS, no pairwise sums."""
    x, (wt, bias), _ = case(workload)
    sums = np.zeros(workload.y_shape, np.float32)
    if isinstance(workload, Conv | Depthwise):
        top, bottom, left, right = workload.pad
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
        for kh, kw in product(range(workload.K), repeat=2):
            rows = slice(kh, kh + workload.stride * (workload.Ho - 1) + 1, workload.stride)
            columns = slice(kw, kw + workload.stride * (workload.Wo - 1) + 1, workload.stride)
            window = padded[:, rows, columns]
            if isinstance(workload, Depthwise):
                sums += window * wt[kh, kw]
            else:
                for ci in range(workload.Ci):
                    sums += window[..., ci, None] * wt[kh, kw, ci]
    else:
        if isinstance(workload, Head):
            pooled = np.zeros((workload.N, workload.Ci), np.float32)
            for h, w in product(range(workload.H), range(workload.W)):
                pooled += x[:, h, w]
            x = pooled / np.float32(workload.H * workload.W)
        for ci in range(workload.Ci):
            sums += x[..., ci, None] * wt[ci]
    y = np.maximum(sums + bias, 0) if workload.activation != "none" else sums + bias
    return np.minimum(y, 6) if workload.activation == "relu6" else y


@ALL
def test_float32_is_inside(workload: Workload) -> None:
    y = in_float32(workload)
    assert y.dtype == np.float32
    assert off(workload, y) < 0.8


def test_float16_allows_for_storing_the_result_and_float32_does_not() -> None:
    workload = MobileNet(alpha=0.25, resolution=128).layers[2].workload
    expected = case(workload)[-1]
    stored = float(np.max(np.abs(expected.astype(np.float16).astype(np.float32) - expected)))
    assert tolerance("float32", workload.terms) < stored < tolerance("float16", workload.terms)


def test_more_terms_may_be_further_off() -> None:
    allowed = [tolerance("float32", terms) for terms in (9, 27, 512, 1024)]
    assert allowed == sorted(allowed)
    assert allowed[-1] < 1e-4
