"""Bytes become the values that a caller would compute from them, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import cuda_device
import numpy as np
import pytest

from kernels.te import normalise
from targets import machines

SHAPES = [(1, 32, 32, 3), (2, 5, 7, 3), (1, 1, 1, 3)]


def expected(pixels: np.ndarray, dtype: str) -> np.ndarray:
    return (pixels.astype(np.float32) / np.float32(127.5) - 1).astype(dtype)


def computed(kind: str, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """What it makes of the bytes of `pixels`, on this CPU or on CUDA device 0."""
    import tvm

    target = machines(kind).DEVICES[name] if name else machines(kind).host()
    module = tvm.compile(normalise.lower(shape, dtype, target), target=target.tvm())
    place = tvm.cuda(0) if kind == "cuda" else tvm.cpu()
    x = tvm.runtime.tensor(pixels(shape), place)
    y = tvm.runtime.tensor(np.full(shape, np.nan, dtype), place)
    module["main"](x, y)
    result: np.ndarray = y.numpy()
    return result


def computed_there(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    from tvm_ffi import register_global_func

    register_global_func("tvm_callback_cuda_compile", cuda_device.kernels, override=True)
    return computed("cuda", "h100", shape, dtype)


def pixels(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_this_cpu(shape: tuple[int, ...], dtype: str) -> None:
    y = computed("x86", "", shape, dtype)
    np.testing.assert_array_equal(y, expected(pixels(shape), dtype))


@pytest.fixture(scope="module")
def device() -> Iterator[cuda_device.Device]:
    made = cuda_device.Device()
    yield made
    made.close()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_on_a_cuda_device(shape: tuple[int, ...], dtype: str, device: cuda_device.Device) -> None:
    y = device.submit(computed_there, shape, dtype).result()
    np.testing.assert_array_equal(y, expected(pixels(shape), dtype))
