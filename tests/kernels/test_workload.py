"""Workloads: shapes are PyTorch's, keys can be read back for ever, nonsense is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kernels.workload import (
    ACTIVATIONS,
    DTYPES,
    ITEM_BYTES,
    KINDS,
    Conv,
    Depthwise,
    Head,
    Pointwise,
    Separable,
    Workload,
    flops,
    moved_bytes,
    parse,
)

EXAMPLES: dict[str, Workload] = {
    "conv/f32/n1.h224.w192.ci3.co32.k3.s2.p0-1-0-1/relu6": Conv(
        N=1, Hi=224, Wi=192, Ci=3, Co=32, stride=2, pad=(0, 1, 0, 1)
    ),
    "depthwise/f16/n2.h56.w28.c128.k5.s1.p2-1-0-3/relu": Depthwise(
        N=2,
        Hi=56,
        Wi=28,
        C=128,
        K=5,
        stride=1,
        pad=(2, 1, 0, 3),
        activation="relu",
        dtype="float16",
    ),
    "pointwise/f32/n1.h14.w7.ci512.co256/relu6": Pointwise(N=1, H=14, W=7, Ci=512, Co=256),
    "head/f32/n3.h7.w6.ci1024.co1001/none": Head(N=3, H=7, W=6, Ci=1024, Co=1001),
    "separable/f32/n1.h28.w14.c512.co256.k3.s2.p0-1-0-1/relu6": Separable(
        N=1, Hi=28, Wi=14, C=512, Co=256, stride=2, pad=(0, 1, 0, 1)
    ),
}
SIZES = st.integers(1, 40)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """K, stride, pad and an image that at least one window fits into."""
    K = draw(st.integers(1, 5))
    sides = st.integers(0, K - 1)
    top, bottom, left, right = pad = draw(st.tuples(sides, sides, sides, sides))
    return {
        "K": K,
        "stride": draw(st.integers(1, 3)),
        "pad": pad,
        "Hi": draw(st.integers(max(1, K - top - bottom), 40)),
        "Wi": draw(st.integers(max(1, K - left - right), 40)),
    }


def built(kind: type[Workload], *sizes: str, window: bool = False) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda window, **others: kind(**window, **others),
        window=windows() if window else st.just({}),
        N=st.integers(1, 4),
        activation=st.sampled_from(ACTIVATIONS),
        dtype=st.sampled_from(sorted(DTYPES)),
        **dict.fromkeys(sizes, SIZES),
    )


convolutions = built(Conv, "Ci", "Co", window=True) | built(Depthwise, "C", window=True)
products = built(Pointwise, "H", "W", "Ci", "Co") | built(Head, "H", "W", "Ci", "Co")
separables = built(Separable, "C", "Co", window=True)
workloads = convolutions | products | separables


@settings(deadline=None, derandomize=True)
@given(workload=workloads)
def test_key_is_read_back(workload: Workload) -> None:
    assert parse(workload.key) == workload


@pytest.mark.parametrize("key", EXAMPLES)
def test_keys_stay_as_logs_have_them(key: str) -> None:
    assert EXAMPLES[key].key == key
    assert parse(key) == EXAMPLES[key]


@pytest.mark.parametrize("workload", EXAMPLES.values(), ids=KINDS)
def test_every_field_is_in_the_key(workload: Workload) -> None:
    others = {"activation": "none", "dtype": "float16", "pad": (1, 0, 0, 0)}
    if workload.activation == "none":
        others["activation"] = "relu"
    if workload.dtype == "float16":
        others["dtype"] = "float32"
    changed = [
        replace(workload, **{field.name: others.get(field.name, 11)}) for field in fields(workload)
    ]
    keys = {workload.key, *(one.key for one in changed)}
    assert len(keys) == 1 + len(changed)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "pointwise",
        "pointwise/f32/n1.h14.w14.ci512.co512",
        "pointwise/f32/n1.h14.w14.ci512.co512/relu6/",
        "pointwise/f32/n1.h14.w14.ci512.co512/gelu",
        "pointwise/f64/n1.h14.w14.ci512.co512/relu6",
        "pointwise/f32/n1.h14.w14.ci512/relu6",
        "pointwise/f32/n1.h14.w14.ci512.co0/relu6",
        "pointwise/f32/n1.h14.w14.ci512.co0512/relu6",
        "pointwise/f32/n1.h14.w14.co512.ci512/relu6",
        "pointwise/f32/n1.n1.h14.w14.ci512.co512/relu6",
        "pointwise/f32/n1.h14.w14.ci512.co512.s2/relu6",
        "pointwise/f32/n1.h14.w14.ci512.co٥/relu6",
        "separable/f32/n1.h14.w14.ci512.co512.k3.s1.p1-1-1-1/relu6",
        "winograd/f32/n1.h14.w14.ci512.co512/relu6",
        "depthwise/f32/n1.h7.w7.c8.k3.s1.p1-1/relu6",
        "depthwise/f32/n1.h7.w7.c8.k3.s1.p1-1-1-9/relu6",
        "depthwise/f32/n1.h1.w1.c8.k3.s1.p0-0-0-0/relu6",
    ],
)
def test_keys_that_name_nothing(key: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        parse(key)
    assert str(error.value) == (
        f"workload key {key!r} cannot be read; expected kind/dtype/sizes/activation as in "
        f"'pointwise/f32/n1.h14.w14.ci512.co512/relu6'"
    )


def in_torch(workload: Workload) -> Tensor:
    """The output, channels last, as PyTorch shapes it with no memory behind it."""
    N, Hi, Wi, Ci = workload.x_shape
    x = torch.empty(N, Ci, Hi, Wi, device="meta")
    match workload:
        case Conv() | Depthwise():
            groups = Ci if isinstance(workload, Depthwise) else 1
            top, bottom, left, right = workload.pad
            x = F.pad(x, (left, right, top, bottom))
            wt = torch.empty(workload.Co, Ci // groups, workload.K, workload.K, device="meta")
            return F.conv2d(x, wt, stride=workload.stride, groups=groups).permute(0, 2, 3, 1)
        case Pointwise():
            wt = torch.empty(workload.Co, Ci, 1, 1, device="meta")
            return F.conv2d(x, wt).permute(0, 2, 3, 1)
        case Head():
            wt = torch.empty(workload.Co, Ci, device="meta")
            return F.linear(x.mean((2, 3)), wt)
        case Separable():
            between = in_torch(workload.depthwise)
            assert tuple(between.shape) == workload.pointwise.x_shape
            return in_torch(workload.pointwise)


@settings(deadline=None, derandomize=True)
@given(workload=workloads)
def test_shapes_and_operations_are_those_of_torch(workload: Workload) -> None:
    with FlopCounterMode(display=False) as counter:
        y = in_torch(workload)
    assert tuple(y.shape) == workload.y_shape
    assert counter.get_total_flops() == flops(workload) == 2 * workload.macs


@settings(deadline=None, derandomize=True)
@given(workload=convolutions | built(Pointwise, "H", "W", "Ci", "Co"))
def test_terms_are_the_products_of_one_output(workload: Workload) -> None:
    assert workload.terms * prod(workload.y_shape) == workload.macs


def test_bytes_count_every_tensor_once() -> None:
    x, wt, bias, y = 2 * 3 * 5 * 4, 4 * 6, 6, 2 * 3 * 5 * 6
    workload = Pointwise(N=2, H=3, W=5, Ci=4, Co=6)
    assert moved_bytes(workload) == 4 * (x + wt + bias + y)
    assert moved_bytes(replace(workload, dtype="float16")) == 2 * (x + wt + y) + 4 * bias


@settings(deadline=None, derandomize=True)
@given(workload=separables)
def test_a_separable_is_its_two_layers(workload: Separable) -> None:
    first, second = workload.depthwise, workload.pointwise
    assert Separable.of(first, second) == workload
    assert Separable.of(first, replace(second, H=second.H + 1)) is None
    assert Separable.of(first, replace(second, activation="none")) in (None, workload)
    assert workload.weight_shapes == first.weight_shapes + second.weight_shapes
    between = 2 * prod(first.y_shape) * ITEM_BYTES[workload.dtype]
    assert moved_bytes(workload) == moved_bytes(first) + moved_bytes(second) - between


CONV = next(iter(EXAMPLES.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"N": 0}, "Conv.N is 0; expected a whole number from 1 up"),
        ({"Ci": -3}, "Conv.Ci is -3; expected a whole number from 1 up"),
        ({"Co": 1.5}, "Conv.Co is 1.5; expected a whole number from 1 up"),
        ({"Hi": "7"}, "Conv.Hi is '7'; expected a whole number from 1 up"),
        ({"stride": 0}, "Conv.stride is 0; expected a whole number from 1 up"),
        (
            {"activation": "gelu"},
            "Conv.activation is 'gelu'; expected one of none, relu, relu6",
        ),
        ({"dtype": "int8"}, "Conv.dtype is 'int8'; expected one of float32, float16"),
        (
            {"pad": (1, 1)},
            "Conv.pad is (1, 1); expected (top, bottom, left, right), each from 0 to K-1 = 2",
        ),
        (
            {"pad": (0, 3, 0, 0)},
            "Conv.pad is (0, 3, 0, 0); expected (top, bottom, left, right), each from 0 to K-1 = 2",
        ),
        (
            {"pad": (0, 0, -1, 0)},
            "Conv.pad is (0, 0, -1, 0); expected (top, bottom, left, right), "
            "each from 0 to K-1 = 2",
        ),
        (
            {"Hi": 1},
            "Conv of 1x192 pixels, pad (0, 1, 0, 1) gives no output; "
            "expected an image of at least 3x3 pixels with its padding",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        replace(CONV, **changes)
    assert str(error.value) == message
