"""TE kernels for CUDA: run on a device made of host memory, compiled by nvcc for a real one."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import cuda_device
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_te import HOSTILE, STRENGTH, arguments, distinct, shapes

from kernels import KERNELS, kernel, kernels_for
from kernels.reference import reference
from kernels.space import Config
from kernels.tolerance import network_tolerance, tolerance
from kernels.workload import (
    ACTIVATIONS,
    DTYPES,
    Conv,
    Depthwise,
    Head,
    Pointwise,
    Separable,
    Workload,
)
from targets import machines
from targets.cuda_toolkit import compiling, load
from targets.target import Target
from tune import weights
from tune.builder import build
from tune.graph import assemble
from tune.mobilenet import MobileNet
from tune.plan import Choice

SM_90: Target = machines("cuda").DEVICES["sm_90"]
OURS = [name for name in KERNELS if name.startswith("te.cuda.")]
# Several blocks and several turns of every loop, yet soon done.
FRIENDLY: list[Workload] = [
    Conv(N=1, Hi=32, Wi=32, Ci=3, Co=32, stride=2, pad=(0, 1, 0, 1)),
    Depthwise(N=1, Hi=14, Wi=14, C=64, stride=1, pad=(1, 1, 1, 1)),
    Depthwise(N=2, Hi=15, Wi=15, C=32, stride=2, pad=(0, 1, 0, 1)),
    Pointwise(N=1, H=10, W=10, Ci=96, Co=160),
    Separable(N=1, Hi=12, Wi=12, C=64, Co=96, stride=1, pad=(1, 1, 1, 1)),
    Head(N=2, H=7, W=7, Ci=256, Co=100),
]


@dataclass(frozen=True)
class Case:
    """One candidate: which kernel, of what, arranged how."""

    workload: Workload
    name: str
    which: str

    def __str__(self) -> str:
        return f"{self.name} {self.which} {self.workload.key}"

    def config(self) -> Config:
        space = kernel(self.name).space(self.workload, SM_90)
        if self.which == "default":
            return space.default
        configs = list(space)
        if self.which == "random":
            return random.Random(self.workload.key).choice(configs)
        return configs[0 if self.which == "first" else -1]


def cases() -> list[Case]:
    """Of every workload in both dtypes and every kernel for it the default config and others."""
    others = ("first", "last", "random")
    found = []
    for dtype in DTYPES:
        for index, workload in enumerate((*FRIENDLY, *HOSTILE)):
            asked = replace(workload, dtype=dtype)
            more = others if workload in FRIENDLY else (others[index % len(others)],)
            names = [name for name in kernels_for(asked, SM_90) if name in OURS]
            found += [Case(asked, name, which) for name in names for which in ("default", *more)]
    return found


def wrong(workload: Workload, name: str, config: Config, edit: tuple[str, str] = ("", "")) -> str:
    """Run one candidate on the device of this process: what is wrong with it, or nothing.

    edit  a pattern of its CUDA C, and what to put in the place of the first match
    """
    import tvm
    from tvm_ffi import register_global_func

    def edited(code: str) -> bytes:
        text, count = re.subn(*edit, code, count=1)
        assert count == 1, f"nothing in the kernel looks like {edit[0]}"
        return cuda_device.kernels(text)

    register_global_func(
        "tvm_callback_cuda_compile", edited if any(edit) else cuda_device.kernels, override=True
    )
    x, given, expected = arguments(workload)
    lowered = kernel(name).lower(workload, config, SM_90)
    sizes = [tuple(map(int, buffer.shape)) for buffer in lowered["main"].params]
    device = tvm.cuda(0)
    packed = (x.reshape(sizes[0]), *kernel(name).pack(workload, config, given))
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(array), device) for array in packed]
    y = tvm.runtime.empty(sizes[-1], workload.dtype, device)
    with compiling(SM_90):
        executable = tvm.compile(lowered, target=SM_90.tvm())
    cuda_device.launches()
    try:
        executable["main"](*tensors, y)
    except Exception as error:  # what TVM raises depends on where the launch failed
        return str(error)
    if len(cuda_device.launches()) != 1:
        return "not in one launch"
    off = np.abs(y.numpy().reshape(expected.shape) - expected.astype(np.float64))
    allowed = STRENGTH * tolerance(workload.dtype, workload.terms)
    return "" if np.all(off <= allowed) else f"off by {np.max(off)}, {allowed} is allowed"


@pytest.fixture(scope="module")
def device() -> Iterator[cuda_device.Device]:
    made = cuda_device.Device(processes=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def answers(device: cuda_device.Device, request: pytest.FixtureRequest) -> dict[Case, Future[str]]:
    """Of all cases that were asked for, so that no process of the device waits."""
    asked = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.name.startswith("test_right_on_the_device[")
    ]
    return {c: device.submit(wrong, c.workload, c.name, c.config()) for c in asked}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_right_on_the_device(case: Case, answers: dict[Case, Future[str]]) -> None:
    assert answers[case].result() == "", case.config()


def test_every_kernel_is_among_those_run() -> None:
    assert {case.name for case in cases()} == set(OURS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", OURS)
def test_activations(name: str, activation: str, device: cuda_device.Device) -> None:
    [first, *_] = [case for case in cases() if case.name == name]
    workload = replace(first.workload, activation=activation)
    config = kernel(name).space(workload, SM_90).default
    assert device.submit(wrong, workload, name, config).result() == ""


def network(dtype: str) -> list[tuple[float, list[int]]]:
    """Call a small network, compiled with our kernels only and a CUDA graph, three times: by how
    much of what is allowed it is off, and of each launch the graph's."""
    import tvm
    from tvm import relax
    from tvm.runtime.vm import VirtualMachine

    model = MobileNet(alpha=0.25, resolution=32, dtype=dtype)
    folded = weights.fold(weights.random(model, 0), model)
    choices = []
    for layer in model.layers:
        [*_, name] = [n for n in kernels_for(layer.workload, SM_90) if n in OURS]
        config = kernel(name).space(layer.workload, SM_90).default
        choices.append(Choice(layers=(layer,), kernel=name, config=config, why="default"))
    with compiling(SM_90, {"relax.backend.use_cuda_graph": True}):
        executable = relax.build(assemble(choices, folded, SM_90), target=SM_90.tvm())
    machine = VirtualMachine(executable, tvm.cuda(0))
    image, logits = (
        tvm.runtime.empty(shape, dtype, tvm.cuda(0))
        for shape in (model.input_shape, (model.batch, model.classes))
    )
    called = []
    for seed in range(3):
        value = np.random.default_rng(seed).uniform(-1, 1, model.input_shape).astype(dtype)
        image.copyfrom(value)
        cuda_device.launches()
        machine["main"](image, logits)
        graphs = [launch.graph for launch in cuda_device.launches()]
        for layer in model.layers:
            wt, bias = folded[layer.name]
            value = value.reshape(layer.workload.x_shape)
            value = reference(layer.workload, value, (wt.astype(dtype), bias))
        terms = [layer.workload.terms for layer in model.layers]
        allowed = network_tolerance(dtype, terms, float(np.abs(value).max()))
        wrong = np.abs(logits.numpy().astype(np.float64) - value.astype(np.float64)).max()
        called.append((float(wrong / allowed), graphs))
    return called


@pytest.mark.parametrize("dtype", DTYPES)
def test_network_in_a_cuda_graph(dtype: str, device: cuda_device.Device) -> None:
    layers = len(MobileNet().layers)
    first, *later = device.submit(network, dtype).result()
    assert (first[0] <= 1, first[1]) == (True, [0] * layers)
    for off, graphs in later:  # all kernels, of one graph
        assert (off <= 1, len(graphs), len(set(graphs)), 0 in graphs) == (True, layers, 1, False)


MATRIX = Pointwise(N=1, H=10, W=10, Ci=96, Co=160)
FAULTS: dict[str, tuple[str, Workload, tuple[str, str], str]] = {
    "tiles that are read before they are there": (
        "te.cuda.pointwise",
        MATRIX,
        (r"__syncthreads\(\);(\s+#pragma unroll\s+for \(int ci_1)", r"\1"),
        "off by",
    ),
    "tiles that are overwritten while they are read": (
        "te.cuda.pointwise",
        MATRIX,
        (r"(for \(int ci_0[^{]+\{[^{}]*?)__syncthreads\(\);", r"\1"),
        "off by",
    ),
    "fragments that are loaded before their tile is there": (
        "te.cuda.pointwise_wmma",
        replace(MATRIX, dtype="float16"),
        (r"__syncthreads\(\);(\s+#pragma unroll\s+for \(int ci_1)", r"\1"),
        "off by",
    ),
    "sums that are stored over tiles still in use": (
        "te.cuda.pointwise_wmma",
        replace(MATRIX, dtype="float16"),
        (r"__syncthreads\(\);(\s+(?:#pragma unroll\s+for [^{]+\{\s+)*nvcuda::wmma::store)", r"\1"),
        "off by",
    ),
    "a barrier that most threads pass by": (
        "te.cuda.head",
        Head(N=2, H=7, W=7, Ci=256, Co=100),
        (r"__syncthreads\(\);", "if (threadIdx.y == 0) __syncthreads();"),
        "off by",
    ),
    "the neighbour's pixel": (
        "te.cuda.depthwise",
        Depthwise(N=1, Hi=14, Wi=14, C=64, stride=1, pad=(1, 1, 1, 1)),
        (r"\*\(float4\*\)\(x_ptr \+", "*(float4*)(x_ptr + 64 +"),
        "off by",
    ),
    "a vector that is not aligned": (
        "te.cuda.depthwise",
        Depthwise(N=1, Hi=14, Wi=14, C=64, stride=1, pad=(1, 1, 1, 1)),
        (r"\*\(float4\*\)\(x_ptr \+", "*(float4*)(x_ptr + 1 +"),
        "an access that is not aligned to its vector",
    ),
    "pixels behind the last": (
        "te.cuda.pointwise",
        Pointwise(N=1, H=5, W=7, Ci=8, Co=20),
        (r"if \([^{]*\{(\s+\*\(float4\*\)\(y_ptr)", r"if (true) {\1"),
        "wrote behind the end of an allocation",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, device: cuda_device.Device) -> None:
    name, workload, edit, said = FAULTS[fault]
    config = kernel(name).space(workload, SM_90).default
    assert device.submit(wrong, workload, name, config).result() == ""
    assert said in device.submit(wrong, workload, name, config, edit).result()


def cuda_source(name: str, workload: Workload, target: Target = SM_90) -> str:
    """What TVM hands to nvcc for the default config."""
    import tvm
    from tvm_ffi import get_global_func, register_global_func

    sources: list[str] = []

    def keep(code: str) -> bytes:
        sources.append(code)
        return b"not compiled"

    config = kernel(name).space(workload, target).default
    lowered = kernel(name).lower(workload, config, target)
    with compiling(target):
        compiler = get_global_func("tvm_callback_cuda_compile")
        register_global_func("tvm_callback_cuda_compile", keep, override=True)
        try:
            tvm.compile(lowered, target=target.tvm())
        finally:
            register_global_func("tvm_callback_cuda_compile", compiler, override=True)
    [source] = sources
    return source


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of a kernel, and its instructions."""

    registers: int
    stack: int
    spilled: int
    instructions: tuple[str, ...]

    def count(self, *starts: str) -> int:
        return sum(instruction.startswith(starts) for instruction in self.instructions)


def compiled(sources: list[str], folder: Path, arch: str = SM_90.mcpu) -> list[Compiled]:
    """Kernels that TVM made, compiled by nvcc as one file, which spares it the headers."""
    heads, bodies = zip(*(source.split('extern "C"', 1) for source in sources), strict=True)
    text = max(heads, key=len)  # with everything that one of them includes
    for index, body in enumerate(bodies):
        text += re.sub(r"\bmain_kernel\b", f"kernel_{index}", 'extern "C"' + body)
    (folder / "kernels.cu").write_text(text)
    toolkit = load()
    level = "--register-usage-level=5"
    command = [toolkit.nvcc, "-cubin", f"-arch={arch}", "-O3", f"-Xptxas=-v,{level}", "kernels.cu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = {
        int(index): tuple(map(int, numbers))
        for index, *numbers in re.findall(
            r"properties for kernel_(\d+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
            r"\d+ bytes spill loads\s+ptxas info\s+: Used (\d+) registers",
            done.stderr,
        )
    }
    listing = subprocess.run(
        [cuobjdump(), "-sass", "kernels.cubin"], cwd=folder, capture_output=True, text=True
    ).stdout
    mixes = {
        int(index): tuple(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", code))
        for index, code in re.findall(
            r"Function : kernel_(\d+)\n(.*?)(?=Function :|\Z)", listing, re.S
        )
    }
    return [
        Compiled(
            registers=said[index][2],
            stack=said[index][0],
            spilled=said[index][1],
            instructions=mixes[index],
        )
        for index in range(len(sources))
    ]


def cuobjdump() -> Path:
    """Triton's wheel has the tool; CUDA's wheels do not."""
    [folder] = find_spec("triton").submodule_search_locations
    return Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"


LAYERS = [
    (name, replace(layer, dtype=dtype))
    for dtype in DTYPES
    for layer in distinct(MobileNet(), *([MobileNet(batch=256)] if dtype == "float16" else []))
    for name in kernels_for(replace(layer, dtype=dtype), SM_90)
    if name in OURS
]


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Workload], Compiled]:
    """Every kernel's default config for every layer of MobileNet, compiled for sm_90."""
    sources = [cuda_source(name, workload) for name, workload in LAYERS]
    halves = [sources[0::2], sources[1::2]]
    with ThreadPoolExecutor(len(halves)) as pool:
        folders = [tmp_path_factory.mktemp("nvcc") for _ in halves]
        even, odd = pool.map(compiled, halves, folders)
    found = {layer: even[i // 2] if i % 2 == 0 else odd[i // 2] for i, layer in enumerate(LAYERS)}
    return found


def assert_good(name: str, workload: Workload, made: Compiled, spilled: int = 0) -> None:
    """In registers, on tensor cores where there are such, and moved 16 bytes at a time."""
    assert (made.stack, made.spilled) == (spilled, spilled)
    assert made.registers <= SM_90.gpu.registers_per_thread
    assert (made.count("LDL", "STL") > 0) == (spilled > 0)
    on_tensor_cores = workload.dtype == "float16" and name in (
        "te.cuda.pointwise_wmma",
        "te.cuda.separable",
    )
    assert (made.count("HMMA") > 0) == on_tensor_cores
    assert made.count("LDG.E.128") > 0
    if not isinstance(workload, Head):  # 1001 outputs are whole vectors of nothing
        assert made.count("STG.E.128") > 0


@pytest.mark.parametrize(("name", "workload"), LAYERS, ids=lambda part: getattr(part, "key", part))
def test_defaults_compile_for_a_gpu(
    name: str, workload: Workload, layers: dict[tuple[str, Workload], Compiled]
) -> None:
    assert_good(name, workload, layers[name, workload])


# Bytes of a thread, at the register level that sm_90 wants; at 7 sm_100 would spill none of these.
SPILLED = {
    ("sm_100", "te.cuda.head", "float32"): 8,
    ("sm_100", "te.cuda.depthwise", "float16"): 32,
    ("sm_100", "te.cuda.pointwise_wmma", "float16"): 16,
}


@pytest.mark.parametrize("device", ["sm_75", "sm_80", "sm_100"])
def test_defaults_compile_for_other_gpus(device: str, tmp_path: Path) -> None:
    """Each kernel's in each dtype for the last of one image's layers that it computes."""
    target: Target = machines("cuda").DEVICES[device]
    last = {(name, layer.dtype): layer for name, layer in LAYERS if layer.N == 1}
    assert {name for name, _ in last} == set(OURS)
    assert all(kernel(name).supports(layer, target) for (name, _), layer in last.items())
    sources = [cuda_source(name, layer, target) for (name, _), layer in last.items()]
    made = compiled(sources, tmp_path, target.mcpu)
    for (name, dtype), one in zip(last, made, strict=True):
        assert_good(name, last[name, dtype], one, SPILLED.get((device, name, dtype), 0))


@settings(deadline=None, derandomize=True)
@given(workload=shapes, dtype=st.sampled_from(sorted(DTYPES)))
def test_every_shape_has_configs(workload: Workload, dtype: str) -> None:
    workload = replace(workload, dtype=dtype)
    for name in kernels_for(workload, SM_90):
        if name in OURS:
            space = kernel(name).space(workload, SM_90)
            assert space.default in space
            assert sum(1 for _ in islice(space, 5001)) <= 5000


def test_kernels_leave_other_machines_alone() -> None:
    x86 = machines("x86").DEVICES["x86-64-v3"]
    assert not any(kernel(name).supports(workload, x86) for name, workload in LAYERS)


def test_tiles_of_equal_size_are_built(tmp_path: Path) -> None:
    """Sums as large as a staged tile, which TVM, left to itself, lets take the other's place."""
    workload = Pointwise(N=1, H=14, W=14, Ci=512, Co=512, dtype="float16")
    config: Config = {
        "BLOCK_P": 32,
        "BLOCK_CO": 128,
        "BLOCK_CI": 64,
        "WARPS_P": 1,
        "WARPS_CO": 4,
    }
    assert config in kernel("te.cuda.pointwise_wmma").space(workload, SM_90)
    library = tmp_path / "candidate.so"
    build(workload, "te.cuda.pointwise_wmma", config, SM_90, library)
    assert bytes.fromhex("50ed55ba") in library.read_bytes()  # nvcc's, not a source only
