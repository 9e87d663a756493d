"""The device made of host memory: it does what a GPU does, and finds what a GPU would forgive."""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cuda_device
import numpy as np
import pytest

HEADERS = """
#include <cuda.h>
#include <cuda_fp16.h>
#include <mma.h>
#define uchar unsigned char
"""


@pytest.fixture(scope="module")
def device() -> Iterator[cuda_device.Device]:
    made = cuda_device.Device()
    yield made
    made.close()


def launched(
    body: str,
    arrays: tuple[np.ndarray, ...],
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
) -> tuple[list[np.ndarray], str]:
    """Run the kernel `body` over there: its arrays afterwards, and what the launch said.

    Its parameters are p0, p1, ... to the arrays' elements; `memory` is its shared memory.
    """
    image = probe(body, arrays, block)
    return called(image, "fatbin", "probe", arrays, (), grid, block, shared)


def probe(body: str, arrays: tuple[np.ndarray, ...], block: int) -> bytes:
    """The image of a module with that kernel."""
    names = {"float32": "float", "float16": "half", "int32": "int"}
    pointers = [f"{names[str(a.dtype)]}* __restrict__ p{i}" for i, a in enumerate(arrays)]
    return cuda_device.kernels(
        f'{HEADERS}extern "C" __global__ void __launch_bounds__({block}) probe'
        f"({', '.join(pointers)}) {{\n"
        f"  extern __shared__ __align__(64) uchar memory[];\n{body}\n}}\n"
    )


def called(*kernel: Any) -> tuple[list[np.ndarray], str]:
    """Launch as TVM does what `ready` makes of the arguments."""
    tensors, launch = ready(*kernel)
    cuda_device.launches()
    said = ""
    try:
        launch()
    except Exception as error:  # what TVM raises depends on where it failed
        said = str(error)
    return [tensor.numpy() for tensor in tensors], said


def ready(
    image: bytes,
    form: str,
    name: str,
    arrays: tuple[np.ndarray, ...],
    numbers: tuple[tuple[str, int], ...],
    grid: int,
    block: int,
    shared: int,
    dependent: bool = False,
) -> tuple[list[Any], Callable[[], Any]]:
    """The arrays on the device, and what launches the kernel."""
    import tvm
    from tvm_ffi import get_global_func

    tags = ["blockIdx.x", "threadIdx.x"]
    tags += ["tirx.use_programtic_dependent_launch"] if dependent else []
    tags += ["tirx.use_dyn_shared_memory"] if shared else []
    kinds = ["handle"] * len(arrays) + [kind for kind, _ in numbers]
    about = {name: {"name": "", "arg_types": kinds, "launch_param_tags": tags}}
    meta = json.dumps({"tvm_version": tvm.__version__, "func_info": about})
    functions = get_global_func("runtime.LoadMetaDataFromJSON")(meta)
    module = get_global_func("ffi.Module.create.cuda")(image, form, functions, {})
    tensors = [tvm.runtime.tensor(array, tvm.cuda(0)) for array in arrays]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    values = [n for _, n in numbers]
    sizes = [grid, block, *([shared] if shared else [])]
    return tensors, lambda: module[name](*pointers, *values, *sizes)


def test_threads_know_where_they_are(device: cuda_device.Device) -> None:
    body = "p0[blockIdx.x * blockDim.x + threadIdx.x] = 1000 * blockIdx.x + threadIdx.x;"
    [after], said = device.submit(launched, body, (np.zeros(192, np.int32),), 3, 64).result()
    assert said == ""
    assert after.tolist() == [1000 * block + thread for block in range(3) for thread in range(64)]


def test_barriers_let_threads_see_what_others_wrote(device: cuda_device.Device) -> None:
    body = """
    float *tile = (float *)memory;
    tile[threadIdx.x] = threadIdx.x;
    __syncthreads();
    p0[threadIdx.x] = tile[(threadIdx.x + 1) % 64];"""
    arguments = (np.zeros(64, np.float32),)
    [after], said = device.submit(launched, body, arguments, 1, 64, 256).result()
    assert said == ""
    assert after.tolist() == [(thread + 1) % 64 for thread in range(64)]
    # And not without one, in one direction or the other.
    hasty = body.replace("__syncthreads();", "")
    for other in (1, 63):
        there = hasty.replace("+ 1) %", f"+ {other}) %")
        [after], said = device.submit(launched, there, arguments, 1, 64, 256).result()
        assert said == ""
        assert np.isnan(after).any()


@pytest.mark.parametrize(
    ("shuffle", "source"),
    [
        ("__shfl_sync(~0u, v, 5)", lambda lane: 5),
        ("__shfl_down_sync(~0u, v, 3)", lambda lane: lane + 3 if lane < 29 else lane),
        ("__shfl_up_sync(~0u, v, 3)", lambda lane: lane - 3 if lane > 2 else lane),
        ("__shfl_xor_sync(~0u, v, 12)", lambda lane: lane ^ 12),
        ("__shfl_down_sync(~0u, v, 3, 8)", lambda lane: lane + 3 if lane % 8 < 5 else lane),
        ("__shfl_xor_sync(~0u, v, 3, 8)", lambda lane: lane ^ 3),
    ],
)
def test_shuffles(shuffle: str, source: Any, device: cuda_device.Device) -> None:
    """Two warps: a value comes from a lane of the same one."""
    body = f"float v = threadIdx.x; p0[threadIdx.x] = {shuffle};"
    [after], said = device.submit(launched, body, (np.zeros(64, np.float32),), 1, 64).result()
    assert said == ""
    assert after.tolist() == [32 * warp + source(lane) for warp in (0, 1) for lane in range(32)]


def test_half_precision_is_that_of_ieee(device: cuda_device.Device) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    [_, widened], said = device.submit(
        launched,
        "for (int i = threadIdx.x; i < 65536; i += 32) p1[i] = (float)p0[i];",
        (every, np.zeros(1 << 16, np.float32)),
    ).result()
    assert said == ""
    assert np.array_equal(widened, every.astype(np.float32), equal_nan=True)

    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    values = bits.view(np.float32)
    near = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) * 1e-5
    values = np.concatenate([values, near])
    [_, rounded], said = device.submit(
        launched,
        f"for (int i = threadIdx.x; i < {values.size}; i += 32) p1[i] = (half)p0[i];",
        (values, np.zeros(values.size, np.float16)),
    ).result()
    assert said == ""
    with np.errstate(over="ignore"):
        assert np.array_equal(rounded, values.astype(np.float16), equal_nan=True)


MATRICES = """
    using namespace nvcuda::wmma;
    half *tile = (half *)memory;
    for (int i = threadIdx.x; i < 512; i += 32) tile[i] = p0[i];
    __syncthreads();
    fragment<accumulator, 16, 16, 16, float> sums;
    fragment<matrix_a, 16, 16, 16, half, row_major> a;
    fragment<matrix_b, 16, 16, 16, half, row_major> b;
    fill_fragment(sums, 0.0f);
    load_matrix_sync(a, tile, 16);
    load_matrix_sync(b, tile + 256, 16);
    mma_sync(sums, a, b, sums);
    store_matrix_sync((float *)memory, sums, 16, mem_row_major);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 32) p1[i] = ((float *)memory)[i];"""


def test_matrix_instructions(device: cuda_device.Device) -> None:
    factors = np.random.default_rng(0).standard_normal((2, 16, 16)).astype(np.float16)
    arguments = (factors.reshape(-1), np.zeros(256, np.float32))
    [_, sums], said = device.submit(launched, MATRICES, arguments, 1, 32, 1024).result()
    assert said == ""
    expected = factors[0].astype(np.float64) @ factors[1].astype(np.float64)
    np.testing.assert_allclose(sums.reshape(16, 16), expected, rtol=0, atol=1e-4)


FAULTS = {
    "lanes of a warp that ask for different matrix instructions": (
        MATRICES.replace(
            "load_matrix_sync(a, tile,", "load_matrix_sync(a, tile + 16 * threadIdx.x,"
        )
    ),
    "a matrix tile that is not aligned to 32 bytes": MATRICES.replace("tile + 256", "tile + 248"),
    "matrix rows that are not multiples of 16 bytes": MATRICES.replace("tile, 16", "tile, 12"),
    "wrote behind the end of an allocation": "p1[256 + threadIdx.x] = 1;",
    "wrote before the start of an allocation": "p1[-1 - (int)threadIdx.x] = 1;",
    "wrote behind the end of its shared memory": "memory[1024 + threadIdx.x] = 1;",
    "an access that is not aligned to its vector": "*(float4 *)(p1 + 2) = *(float4 *)p1;",
    "threads that wait at barriers which others never reach": (
        "if (threadIdx.x < 16) __syncthreads(); else __syncwarp();"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_a_launch(fault: str, device: cuda_device.Device) -> None:
    arguments = (np.zeros(512, np.float16), np.zeros(256, np.float32))
    _, said = device.submit(launched, FAULTS[fault], arguments, 1, 32, 1024).result()
    assert f"probe: {fault}" in said
    # The next launch is none the worse.
    [_, _], said = device.submit(launched, MATRICES, arguments, 1, 32, 1024).result()
    assert said == ""


@pytest.mark.parametrize(
    ("block", "shared", "why"),
    [
        (1056, 0, "a block of [1056, 1, 1]"),
        (32, 232449, "Failed to set the allowed dynamic shared memory"),
    ],
)
def test_no_launch_beyond_the_limits(
    block: int, shared: int, why: str, device: cuda_device.Device
) -> None:
    arguments = (np.zeros(1, np.float32),)
    [after], said = device.submit(launched, "p0[0] = 1;", arguments, 1, block, shared).result()
    assert why in said
    assert after[0] == 0


CUBIN = """
extern "C" __global__ void scale(const float *x, float *y, int count, long long factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) y[i] = x[i] * factor;
}
"""


def cubin() -> bytes:
    """A real module for a real GPU."""
    from targets.cuda_toolkit import load

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scale.cu").write_text(CUBIN)
        command = [load().nvcc, "-cubin", "-arch=sm_90", "scale.cu"]
        subprocess.run(command, cwd=folder, check=True)
        return (Path(folder) / "scale.cubin").read_bytes()


def scale(launch: cuda_device.Launch) -> None:
    """The kernel `scale` in NumPy."""
    x, y, count, factor = launch.arguments
    source = cuda_device.array(x, (count,), "float32")
    cuda_device.array(y, (count,), "float32")[:] = source * factor


def launch_cubin(function: Any) -> tuple[list[np.ndarray], str, list[cuda_device.Launch]]:
    if function:
        cuda_device.stand_in("scale", function)
    arrays = (np.arange(6, dtype=np.float32), np.full(6, -1, np.float32))
    numbers = (("int32", 6), ("int64", 3))
    after, said = called(cubin(), "cubin", "scale", arrays, numbers, 1, 32, 0)
    return after, said, cuda_device.launches()


def fails(launch: cuda_device.Launch) -> None:
    raise ValueError("on purpose")


def test_launches_of_a_cubin_are_recorded_and_stood_in_for(device: cuda_device.Device) -> None:
    [x, y], said, [launch] = device.submit(launch_cubin, None).result()
    assert said == ""
    assert y.tolist() == [-1] * 6
    assert (launch.kernel, launch.grid, launch.block, launch.shared) == (
        "scale",
        (1, 1, 1),
        (32, 1, 1),
        0,
    )
    assert launch.sizes == (8, 8, 4, 8)
    assert launch.arguments[2:] == (6, 3)
    assert (launch.by, launch.graph) == ("nothing", 0)

    [x, y], said, [launch] = device.submit(launch_cubin, scale).result()
    assert said == ""
    assert y.tolist() == (3 * x).tolist()
    assert launch.by == "stand-in"

    _, said, _ = device.submit(launch_cubin, fails).result()
    assert "scale: its stand-in failed" in said


def launch_ahead(dependent: bool) -> list[cuda_device.Launch]:
    arrays = (np.zeros(1, np.float32),)
    image = probe("p0[0] = 1;", arrays, 1)
    called(image, "fatbin", "probe", arrays, (), 2, 1, 256, dependent)
    return cuda_device.launches()


@pytest.mark.parametrize("dependent", [False, True])
def test_a_launch_may_come_ahead_of_the_end_of_another(
    dependent: bool, device: cuda_device.Device
) -> None:
    """Which takes none of the arguments that say how large it is."""
    [launch] = device.submit(launch_ahead, dependent).result()
    assert launch.dependent == dependent
    assert (launch.grid, launch.block, launch.shared) == ((2, 1, 1), (1, 1, 1), 256)


def captured(calls: Sequence[str], mode: int) -> list[int]:
    """What CUDA's runtime answers to `calls` while a stream is captured, and at its end."""
    runtime = ctypes.CDLL("libcudart.so.13")
    held, more, stream, other, graph = (ctypes.c_void_p() for _ in range(5))
    runtime.cudaMalloc(ctypes.byref(held), ctypes.c_size_t(16))
    for one in (stream, other):
        runtime.cudaStreamCreate(ctypes.byref(one))
    known = {
        "allocate": lambda: runtime.cudaMalloc(ctypes.byref(more), ctypes.c_size_t(16)),
        "free": lambda: runtime.cudaFree(held),
        "wait for it": lambda: runtime.cudaStreamSynchronize(stream),
        "wait for default": lambda: runtime.cudaStreamSynchronize(None),
        "wait for other": lambda: runtime.cudaStreamSynchronize(other),
    }
    codes = [runtime.cudaStreamBeginCapture(stream, mode)]
    codes += [known[call]() for call in calls]
    return [*codes, runtime.cudaStreamEndCapture(stream, ctypes.byref(graph))]


GLOBAL, RELAXED = 0, 2


@pytest.mark.parametrize(
    ("call", "mode", "answers"),
    [
        ("allocate", GLOBAL, [0, 900, 901]),
        ("free", GLOBAL, [0, 900, 901]),
        ("allocate", RELAXED, [0, 0, 0]),
        ("free", RELAXED, [0, 0, 0]),
        ("wait for it", RELAXED, [0, 900, 901]),
        ("wait for default", RELAXED, [0, 906, 901]),
        ("wait for other", GLOBAL, [0, 0, 0]),
    ],
)
def test_a_capture_permits_what_cuda_permits(
    call: str, mode: int, answers: list[int], device: cuda_device.Device
) -> None:
    assert device.submit(captured, [call], mode).result() == answers
    assert device.submit(captured, [], mode).result() == [0, 0]  # the next one is none the worse


def launch_in_a_capture(on_its_stream: bool) -> tuple[float, str]:
    """What a launch leaves when the stream that is captured is its own, or another; what fails."""
    import tvm
    from tvm_ffi import use_raw_stream

    from tune.cuda import CudaError, Graph, new_stream

    arrays = (np.zeros(1, np.float32),)
    image = probe("p0[0] += 1;", arrays, 1)
    [tensor], launch = ready(image, "fatbin", "probe", arrays, (), 1, 1, 0)
    launch()  # loads the code
    stream = new_stream()
    said = ""
    with use_raw_stream(tvm.cuda(), stream if on_its_stream else 0):
        try:
            graph = Graph(stream, launch)
            graph.launch()
            graph.launch()
        except (RuntimeError, CudaError) as error:
            said = str(error)
    return float(tensor.numpy()[0]), said


def test_a_graph_has_the_launches_of_its_stream(device: cuda_device.Device) -> None:
    assert device.submit(launch_in_a_capture, True).result() == (3, "")


def test_none_goes_to_the_default_stream_meanwhile(device: cuda_device.Device) -> None:
    left, said = device.submit(launch_in_a_capture, False).result()
    assert left == 1
    assert "the default stream would wait for one that is captured" in said
