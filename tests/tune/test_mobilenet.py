"""The networks of the paper: their sizes in its tables, their shapes against PyTorch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels.workload import Conv, Depthwise, Workload
from tune.mobilenet import BODIES, EPSILON, MobileNet

RESOLUTIONS = (224, 192, 160, 128)
MILLION_MACS = {  # by width, at each of RESOLUTIONS
    1.0: (568.74, 418.12, 290.68, 186.40),
    0.75: (325.40, 239.27, 166.40, 106.77),
    0.5: (149.50, 109.97, 76.53, 49.16),
    0.25: (41.03, 30.21, 21.06, 13.57),
}
PARAMETERS = {
    (1.0, 1001): 4_233_001,
    (0.75, 1001): 2_586_329,
    (0.5, 1001): 1_332_105,
    (0.25, 1001): 470_329,
    (1.0, 1000): 4_231_976,
    (0.75, 1000): 2_585_560,
    (0.5, 1000): 1_331_592,
    (0.25, 1000): 470_072,
}
KINDS = ("depthwise", "pointwise")


@pytest.mark.parametrize("variant", EPSILON)
@pytest.mark.parametrize(
    ("alpha", "resolution", "millions"),
    [
        (alpha, resolution, millions)
        for alpha, row in MILLION_MACS.items()
        for resolution, millions in zip(RESOLUTIONS, row, strict=True)
    ],
)
def test_macs(alpha: float, resolution: int, millions: float, variant: str) -> None:
    model = MobileNet(alpha=alpha, resolution=resolution, variant=variant)
    assert round(model.macs / 1e6, 2) == millions


@pytest.mark.parametrize(("alpha", "classes"), PARAMETERS)
def test_parameters(alpha: float, classes: int) -> None:
    model = MobileNet(alpha=alpha, classes=classes)
    assert model.parameters == PARAMETERS[alpha, classes]


def test_controls_of_the_paper() -> None:
    full, shallow = MobileNet(body="full"), MobileNet(body="shallow")
    # The paper prints 4866 million; the layers of its table 1 give 4867.3, and 4866.3 without the
    # dense layer, which its other totals include.
    assert full.macs == 4_867_294_208
    assert full.macs == pytest.approx(4866e6, rel=5e-4)
    assert round(full.parameters / 1e6, 1) == 29.3
    assert round(shallow.macs / 1e6) == 307
    assert round(shallow.parameters / 1e6, 1) == 2.9


def test_macs_count_the_whole_batch() -> None:
    assert MobileNet(batch=4).macs == 4 * MobileNet().macs


def test_layers_of_the_paper() -> None:
    layers = {layer.name: layer.workload for layer in MobileNet().layers}
    blocks = [f"block{number}.{kind}" for number in range(1, 14) for kind in KINDS]
    assert list(layers) == ["stem", *blocks, "head"]
    strides = [layers[name].stride for name in blocks[::2]]  # type: ignore[union-attr]
    assert strides == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    assert [layers[name].Co for name in blocks[1::2]] == [
        *(64, 128, 128, 256, 256),
        *(512,) * 6,
        *(1024, 1024),
    ]
    assert layers["block13.depthwise"].y_shape == (1, 7, 7, 1024)


def test_layers_of_the_controls() -> None:
    full = [layer.name for layer in MobileNet(body="full").layers]
    assert full == ["stem", *(f"block{number}.conv" for number in range(1, 14)), "head"]
    shallow, everything = (
        [layer.workload for layer in MobileNet(body=body).layers]
        for body in ("shallow", "separable")
    )
    assert shallow == everything[:13] + everything[23:]
    assert {workload.x_shape for workload in everything[13:23]} == {(1, 14, 14, 512)}
    assert {workload.y_shape for workload in everything[13:23]} == {(1, 14, 14, 512)}


def test_narrowest_layers_have_eight_channels() -> None:
    widths = [
        layer.workload.Co for layer in MobileNet(alpha=0.1).layers if "pointwise" in layer.name
    ]
    assert widths == [8, 12, 12, 25, 25, *(51,) * 6, 102, 102]
    assert MobileNet(alpha=0.1).layers[0].workload.Co == 8


@pytest.mark.parametrize(
    ("variant", "resolution", "pad"),
    [
        ("tf", 224, (0, 1, 0, 1)),
        ("tf", 225, (1, 1, 1, 1)),
        ("torch", 224, (1, 1, 1, 1)),
        ("torch", 225, (1, 1, 1, 1)),
    ],
)
def test_padding_at_stride_2(variant: str, resolution: int, pad: tuple[int, ...]) -> None:
    stem, block1, *_ = MobileNet(variant=variant, resolution=resolution).layers
    assert isinstance(stem.workload, Conv)
    assert isinstance(block1.workload, Depthwise)
    assert stem.workload.pad == pad
    assert block1.workload.pad == (1, 1, 1, 1)


@settings(deadline=None, derandomize=True)
@given(
    resolution=st.integers(32, 400),
    alpha=st.floats(0.05, 2),
    batch=st.integers(1, 3),
    variant=st.sampled_from(sorted(EPSILON)),
    body=st.sampled_from(BODIES),
)
def test_shapes_are_those_of_torch(**fields: Any) -> None:
    model = MobileNet(**fields)
    workloads = [layer.workload for layer in model.layers]
    assert workloads[0].x_shape == model.input_shape
    for before, after in pairwise(workloads):
        assert before.y_shape == after.x_shape
    for workload in workloads:
        if isinstance(workload, Conv | Depthwise):
            assert workload.y_shape == torch_shape(workload)
            if model.variant == "tf":
                assert workload.Ho == -(-workload.Hi // workload.stride)  # SAME, by definition
                top, bottom, left, right = workload.pad
                assert (top, bottom) == (left, right)
                assert top <= bottom <= top + 1


def torch_shape(workload: Workload) -> tuple[int, ...]:
    """Of the output, (N,Ho,Wo,Co), as PyTorch computes it, with no memory behind it."""
    assert isinstance(workload, Conv | Depthwise)
    N, Hi, Wi, C = workload.x_shape
    groups = C if isinstance(workload, Depthwise) else 1
    top, bottom, left, right = workload.pad
    x = F.pad(torch.empty(N, C, Hi, Wi, device="meta"), (left, right, top, bottom))
    wt = torch.empty(workload.Co, C // groups, workload.K, workload.K, device="meta")
    N, Co, Ho, Wo = F.conv2d(x, wt, stride=workload.stride, groups=groups).shape
    return (N, Ho, Wo, Co)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("alpha", 0, "alpha is 0; expected a number above 0; pass 0.5 or 1.0"),
        ("alpha", float("nan"), "alpha is nan; expected a number above 0; pass 0.5 or 1.0"),
        ("alpha", float("inf"), "alpha is inf; expected at most 100; pass 0.5 or 1.0"),
        ("alpha", "1", "alpha is '1'; expected a number above 0; pass 0.5 or 1.0"),
        ("resolution", 31, "resolution is 31; expected a whole number; pass 32 or more"),
        ("batch", 0, "batch is 0; expected a whole number; pass 1 or more"),
        ("classes", 1.5, "classes is 1.5; expected a whole number; pass 1 or more"),
        ("variant", "onnx", "variant is 'onnx'; expected one of tf, torch; pass tf"),
        ("dtype", "int8", "dtype is 'int8'; expected one of float32, float16; pass float32"),
        ("body", "", "body is ''; expected one of separable, full, shallow; pass separable"),
    ],
)
def test_refuses(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        MobileNet(**{field: value})
    assert str(error.value) == message
