"""Floors of layers by hand, and of networks against another program's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kernels.workload import Depthwise, Head, Pointwise, Separable, Workload
from targets import cuda
from targets.target import GpuLimits
from tune.mobilenet import MobileNet
from tune.roofline import floor, fused

H100 = cuda.DEVICES["h100"].gpu


def network(batch: int, dtype: str = "float16") -> list[Workload]:
    return [layer.workload for layer in MobileNet(batch=batch, dtype=dtype).layers]


def total_s(workloads: list[Workload], gpu: GpuLimits, math: str) -> float:
    return sum(floor(workload, gpu, math).seconds for workload in workloads)


def test_floor_of_one_pointwise_layer_by_hand() -> None:
    workload = Pointwise(N=256, H=112, W=112, Ci=32, Co=64, dtype="float16")
    found = floor(workload, H100, "f16")
    pixels = 256 * 112 * 112
    assert found.moved_bytes == 2 * pixels * (32 + 64) + 2 * 32 * 64 + 4 * 64
    assert found.flops == 2 * pixels * 32 * 64
    assert found.bound == "memory"
    assert found.seconds == pytest.approx(found.moved_bytes / 3.35e12)
    assert floor(workload, H100, "f32").bound == "arithmetic"
    deep = replace(workload, H=7, W=7, Ci=1024, Co=1024)
    assert floor(deep, H100, "f16").bound == "arithmetic"
    assert floor(deep, H100, "f16").seconds == pytest.approx(2 * deep.macs / 989.5e12)


def test_depthwise_layers_run_on_cuda_cores() -> None:
    layer = Depthwise(N=1, Hi=8, Wi=8, C=64, stride=1, pad=(1, 1, 1, 1), dtype="float16")
    found = floor(layer, H100, "f16")
    assert found.compute_s == pytest.approx(2 * layer.macs / 67e12)


def test_fusing_saves_what_lies_between() -> None:
    depthwise = Depthwise(N=4, Hi=14, Wi=14, C=512, stride=1, pad=(1, 1, 1, 1), dtype="float16")
    pointwise = Pointwise(N=4, H=14, W=14, Ci=512, Co=512, dtype="float16")
    (both,) = fused([depthwise, pointwise])
    assert both == Separable.of(depthwise, pointwise)
    apart = sum(floor(one, H100, "f16").moved_bytes for one in (depthwise, pointwise))
    between = 2 * 4 * 14 * 14 * 512 * 2
    assert floor(both, H100, "f16").moved_bytes == apart - between
    assert floor(both, H100, "f16").flops == sum(2 * one.macs for one in (depthwise, pointwise))


def test_fusing_a_network_leaves_other_layers_alone() -> None:
    workloads = network(1)
    together = fused(workloads)
    assert (len(workloads), len(together)) == (28, 15)
    assert (together[0], together[-1]) == (workloads[0], workloads[-1])
    assert isinstance(together[-1], Head)
    assert all(isinstance(one, Separable) for one in together[1:-1])
    assert fused(workloads[2:4]) == workloads[2:4]


@pytest.mark.parametrize(
    ("gpu", "dtype", "math", "batch", "apart_us", "fused_us"),
    [
        ({}, "float16", "f16", 1, 8.6, 6.3),
        ({}, "float16", "f16", 256, 1579, 987),
        ({}, "float32", "f32", 1, 25, 19),
        ({}, "float32", "f32", 256, 6006, 4652),
        ({"memory_bytes_per_s": 3e12, "tensor_f16_flops": 798e12}, "float16", "f16", 1, 9.6, 7.1),
        (
            {"memory_bytes_per_s": 3e12, "tensor_f16_flops": 798e12},
            "float16",
            "f16",
            256,
            1768,
            1106,
        ),
    ],
)
def test_floors_of_mobilenet_on_h100(
    gpu: dict[str, Any], dtype: str, math: str, batch: int, apart_us: float, fused_us: float
) -> None:
    """Computed before by another program, from the paper's table of layers."""
    limits, workloads = replace(H100, **gpu), network(batch, dtype)
    digits = 0 if apart_us > 10 else 1
    assert round(total_s(workloads, limits, math) * 1e6, digits) == apart_us
    assert round(total_s(fused(workloads), limits, math) * 1e6, digits) == fused_us


def test_no_tf32_on_turing() -> None:
    with pytest.raises(ValueError, match="sm_75"):
        floor(network(1, "float32")[1], cuda.DEVICES["t4"].gpu, "tf32")
