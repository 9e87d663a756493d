"""Every Triton kernel on this machine's GPU against the reference. Needs no TVM."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from triton_interpreter import STRENGTH, allowed, strong

from kernels import KERNELS, kernel, kernels_for
from kernels.reference import reference
from kernels.space import Config
from kernels.workload import Conv, Depthwise, Pointwise, Separable, Workload
from targets import machines
from targets.target import Target
from tune.mobilenet import MobileNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
]
NAMES = [name for name in KERNELS if name.startswith("triton.")]
DTYPES = ("float16", "float32")
SAME: dict[str, Any] = {"stride": 1, "pad": (1, 1, 1, 1)}


def layers(*models: MobileNet) -> list[Workload]:
    """Each layer, and each two of which one kernel can be made."""
    single = [layer.workload for model in models for layer in model.layers]
    together = [
        Separable.of(first, second)
        for first, second in pairwise(single)
        if isinstance(first, Depthwise) and isinstance(second, Pointwise)
    ]
    return list(dict.fromkeys((*single, *filter(None, together))))


LAYERS = [
    replace(workload, dtype=dtype)
    for workload in layers(MobileNet(), MobileNet(batch=3, alpha=0.75, resolution=160))
    for dtype in DTYPES
]
# Where an element's number does not fit 31 bits; only the last image is compared.
HUGE: list[Workload] = [
    Conv(N=14400, Hi=224, Wi=224, Ci=3, Co=32, stride=2, pad=(0, 1, 0, 1), dtype="float16"),
    Depthwise(N=2051, Hi=64, Wi=64, C=256, dtype="float16", **SAME),
    Pointwise(N=2051, H=64, W=64, Ci=256, Co=256, dtype="float16"),
    Separable(N=2051, Hi=64, Wi=64, C=256, Co=256, dtype="float16", **SAME),
]


@pytest.fixture(scope="module")
def target() -> Target:
    """This machine's GPU, or where that is not known the first of its architecture."""
    cuda = machines("cuda")
    try:
        found: Target = cuda.host()
    except ValueError:
        major, minor = torch.cuda.get_device_capability()
        found = cuda.DEVICES[f"sm_{major}{minor}"]
    return found


def candidates(workload: Workload, target: Target, most: int) -> Iterator[tuple[str, Config]]:
    """Of every kernel for it the default config, and some others drawn at random."""
    for name in kernels_for(workload, target):
        if name in NAMES:
            space = kernel(name).space(workload, target)
            others = [config for config in space if config != space.default]
            random.Random(workload.key).shuffle(others)
            yield from ((name, config) for config in (space.default, *others[:most]))


def output(
    workload: Workload, name: str, config: Config, target: Target, x: torch.Tensor, weights: Any
) -> torch.Tensor:
    """What the kernel makes of x, which is on the device that computes."""
    from kernels.triton.run import run

    module: Any = kernel(name)
    call = module.call(workload, config, target)
    packed = [
        torch.from_numpy(array).to(x.device) for array in module.pack(workload, config, weights)
    ]
    y = torch.full(workload.y_shape, float("nan"), dtype=x.dtype, device=x.device)
    given = [x, *packed, y]
    shapes = [tensor.shape for tensor in call.arguments]
    run(call, [value.view(shape) for value, shape in zip(given, shapes, strict=True)])
    return y


def assert_right(workload: Workload, y: torch.Tensor, expected: np.ndarray, config: Config) -> None:
    off = np.abs(y.cpu().numpy().astype(np.float64) - expected.astype(np.float64))
    assert np.all(off <= allowed(workload)), f"{config} is off by {np.nanmax(off):.3g}"


@pytest.mark.parametrize("workload", LAYERS, ids=lambda workload: workload.key)
def test_layers_of_mobilenet(workload: Workload, target: Target) -> None:
    x, weights = strong(workload)
    expected = reference(workload, x, weights)
    found = list(candidates(workload, target, most=6))
    assert found
    for name, config in found:
        y = output(workload, name, config, target, torch.from_numpy(x).cuda(), weights)
        assert_right(workload, y, expected, config)


@pytest.mark.parametrize("workload", HUGE, ids=lambda workload: workload.key)
def test_more_elements_than_31_bits_count(workload: Workload, target: Target) -> None:
    one = replace(workload, N=1)
    image, weights = strong(one)
    x = torch.zeros(workload.x_shape, dtype=torch.float16, device="cuda")
    x[-1] = torch.from_numpy(image[0]).cuda()
    assert max(x.numel(), np.prod(workload.y_shape)) > 1 << 31
    for name, config in candidates(workload, target, most=0):
        y = output(workload, name, config, target, x, weights)
        assert_right(one, y[-1:], reference(one, image, weights), config)
        # The first image is all zeros, and only biases are left of it.
        nothing = reference(one, np.zeros_like(image), weights)
        assert_right(one, y[:1], nothing, config)


def test_tf32_is_coarser_than_float32_may_be(target: Target) -> None:
    """Why no space offers it, and that the check would tell."""
    if not target.gpu.tensor_tf32_flops:
        pytest.skip(f"{target.device} has no TF32")
    workload = Pointwise(N=1, H=14, W=14, Ci=512, Co=512)
    x, weights = strong(workload)
    config = kernel("triton.pointwise").space(workload, target).default | {"PRECISION": "tf32"}
    y = output(workload, "triton.pointwise", config, target, torch.from_numpy(x).cuda(), weights)
    off = np.abs(y.cpu().numpy() - reference(workload, x, weights)).max()
    assert allowed(workload) < off < 0.01 * STRENGTH
