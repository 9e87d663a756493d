"""A whole network for sm_90 with kernels of both kinds inside: what its host code launches.

Tensor expressions compute on the device made of host memory. Triton's machine code cannot run
there: each launch of it is recorded, and NumPy computes in its place from the memory that its
arguments point to, so that wrong arguments give wrong logits.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import cuda_device
import numpy as np
import pytest

from kernels import kernel, kernels_for
from kernels.reference import reference
from kernels.space import blocks
from kernels.tolerance import network_tolerance
from kernels.triton.call import Call, Launch
from kernels.workload import Conv, Depthwise, Head, Workload
from targets import machines
from tune import weights
from tune.compile import compile_network, manifest
from tune.cubin import cubins, inspect
from tune.graph import assemble
from tune.mobilenet import MobileNet
from tune.plan import Choice
from tune.runtime import Network

SM_90 = machines("cuda").DEVICES["sm_90"]
MODEL = MobileNet(alpha=0.25, resolution=32, classes=10, dtype="float16")
INFERENCES = 3
CLONES = 4  # one a thread
NEAR = 0.05  # All kernels here sum in float32, and come to 0.007; three blocks without bias to 0.5.
# Blocks that are one choice, each by a kernel of this kind.
TOGETHER = {"block1": "triton.", "block2": "te.cuda.", "block3": "triton."}
BY_TRITON = ("block4",)  # whose depthwise layer is, too


@dataclass(frozen=True)
class Seen:
    """What one inference did. `off` is in tolerances, which allow for sums in float16."""

    off: float
    launches: tuple[cuda_device.Launch, ...]


def choices() -> tuple[Choice, ...]:
    """Triton's kernels, but TVM's for one block and most depthwise layers, all by default.

    The last two are two launches each, and leave something in memory from one to the other.
    """
    found = []
    for block, members in groupby(MODEL.layers, key=lambda layer: layer.name.partition(".")[0]):
        layers = tuple(members)
        for taken in [layers] if block in TOGETHER else [(layer,) for layer in layers]:
            workload = Choice(layers=taken, kernel="", config={}, why="default").workload
            alone = isinstance(workload, Depthwise) and block not in BY_TRITON
            kind = TOGETHER.get(block, "te.cuda." if alone else "triton.")
            name = next(n for n in kernels_for(workload, SM_90) if n.startswith(kind))
            space = kernel(name).space(workload, SM_90)
            config = space.default
            if taken[-1] in MODEL.layers[-2:]:
                knob = "LAUNCHES" if isinstance(workload, Head) else "SPLIT_CI"
                config = next((c for c in space if c.get(knob) == 2), config)
            found.append(Choice(layers=taken, kernel=name, config=config, why="default"))
    return tuple(found)


def calls(choices: Sequence[Choice]) -> list[Call | None]:
    """What Triton's kernels launch; None where TVM's do."""
    return [
        kernel(each.kernel).call(each.workload, each.config, SM_90)  # type: ignore[attr-defined]
        if each.kernel.startswith("triton.")
        else None
        for each in choices
    ]


def computed(workload: Workload, call: Call, launch: Launch) -> Callable[[Any], None]:
    """What one of a kernel's launches computes, from the memory that its arguments point to."""

    def compute(made: cuda_device.Launch) -> None:
        shapes = {tensor.name: tensor for tensor in (*call.arguments, *call.scratch)}
        memory = {
            name: cuda_device.array(pointer, shapes[name].shape, shapes[name].dtype)
            for name, pointer in zip(launch.tensors, made.arguments, strict=False)
        }
        if isinstance(workload, Head) and "wt" in memory:
            memory["wt"] = memory["wt"].T  # a row an output
        if isinstance(workload, Conv):  # rows of a window, each to whole loads
            row, width = workload.K * workload.Ci, int(launch.constants["WIDTH"])
            taken = memory["wt"][: workload.K * blocks(row, width) * width]
            filters = taken.reshape(workload.K, -1, taken.shape[-1])[:, :row]
            memory["wt"] = filters.reshape(-1, taken.shape[-1])
        weights = [
            unpadded(memory[tensor.name], shape)
            for tensor, shape in zip(call.arguments[1:-1], workload.weight_shapes, strict=True)
            if tensor.name in memory
        ]
        x, y, parts, means = map(memory.get, ("x", "y", "parts", "means"))
        match launch.kernel.__name__:
            case "_pointwise" if parts is not None:
                parts[...] = x.astype("float32") @ weights[0].astype("float32") / len(parts)
            case "_pointwise_sum":
                y[...] = np.clip(parts.sum(axis=0) + weights[0], 0, 6)
            case "_head_pool":
                means[...] = x.mean(axis=1, dtype="float32")
            case "_head_dense" | "_head_product":
                y[...] = means.astype("float32") @ weights[0].astype("float32") + weights[1]
            case _:
                values = reference(workload, x.reshape(workload.x_shape), weights)
                y[...] = values.reshape(y.shape)

    return compute


def unpadded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A filter or bias of `shape`, of which a kernel may have made the first axes one."""
    joined = len(shape) - array.ndim + 1
    sizes = (prod(shape[:joined]), *shape[joined:])
    return array[tuple(map(slice, sizes))].reshape(shape)


def infer(path: str) -> list[Seen]:
    """Build the network into the library at `path`, load it anew, and call it. Runs over there."""
    import tvm

    chosen = choices()
    folded = weights.fold(weights.random(MODEL, 0), MODEL)
    for choice, call in zip(chosen, calls(chosen), strict=True):
        for launch in call.launches if call else ():
            compute = computed(choice.workload, call, launch)
            cuda_device.stand_in(launch.name(call.dtypes), compute)
    library = Path(path)
    weights_bytes = compile_network(assemble(chosen, folded, SM_90), SM_90, library)
    described = manifest(
        MODEL, chosen, folded, SM_90, threads=1, library=library, weights_bytes=weights_bytes
    )
    network = Network(tvm.runtime.load_module(path), described, tvm.cuda(0))
    seen = []
    for seed in range(INFERENCES):
        image = np.random.default_rng(seed).uniform(-1, 1, MODEL.input_shape).astype(MODEL.dtype)
        cuda_device.launches()
        logits = network(image)
        value = image
        for layer in MODEL.layers:
            wt, bias = folded[layer.name]
            given = (wt.astype(MODEL.dtype), bias)
            value = reference(layer.workload, value.reshape(layer.workload.x_shape), given)
        terms = [layer.workload.terms for layer in MODEL.layers]
        allowed = network_tolerance(MODEL.dtype, terms, float(np.abs(value).max()))
        off = float(np.abs(logits.astype(np.float64) - value).max()) / allowed
        seen.append(Seen(off, tuple(cuda_device.launches())))
    clones = [network.clone() for _ in range(CLONES)]
    with ThreadPoolExecutor(CLONES) as pool:
        for alike in pool.map(lambda clone: clone(image), clones):
            assert np.array_equal(alike, logits)  # although each has recorded a graph of its own
    return seen


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("network") / "network.so"


@pytest.fixture(scope="module")
def seen(library: Path) -> Iterator[list[Seen]]:
    device = cuda_device.Device()
    yield device.submit(infer, str(library)).result()
    device.close()


def test_logits_are_right_every_time(seen: list[Seen]) -> None:
    assert [one.off <= NEAR for one in seen] == [True] * INFERENCES


def test_layers_are_launched_in_their_order_as_they_were_compiled(seen: list[Seen]) -> None:
    from kernels.triton.aot import compile_call

    for one in seen:
        left = list(one.launches)
        for call in calls(choices()):
            if call is None:
                assert left.pop(0).by == "host"
                continue
            for binary in compile_call(call, SM_90):
                launch = left.pop(0)
                assert launch.by == "stand-in"
                assert launch.kernel == binary.name
                assert launch.grid == (binary.programs, 1, 1)
                assert launch.block == (binary.threads, 1, 1)
                assert launch.shared == binary.shared_bytes
                assert len(launch.arguments) == len(binary.tensors) + 2
                assert launch.arguments[-2:] == (0, 0)
        assert not left


def test_tritons_launches_come_ahead_of_an_end_and_tvms_do_not(seen: list[Seen]) -> None:
    """One by one and in a graph."""
    for one in seen:
        ways = {(launch.by, launch.dependent) for launch in one.launches}
        assert ways == {("stand-in", True), ("host", False)}


def test_an_inference_is_one_launch_from_the_second_on(seen: list[Seen]) -> None:
    graphs = [{launch.graph for launch in one.launches} for one in seen]
    assert graphs == [{0}, {1}, {2}]
    assert len({len(one.launches) for one in seen}) == 1


def test_no_memory_is_a_threads_own(seen: list[Seen], library: Path) -> None:
    listed = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True)
    names = {line.split()[-1].strip("_") for line in listed.stdout.splitlines()}
    assert "TVMFFIFunctionCall" in names
    assert "TVMBackendAllocWorkspace" not in names


def test_the_library_holds_the_machine_code(seen: list[Seen], library: Path) -> None:
    held = {one.name for cubin in cubins(library.read_bytes()) for one in inspect(cubin).kernels}
    launched = {launch.kernel for launch in seen[0].launches if launch.by == "stand-in"}
    names = {name.rpartition("_")[0] for name in launched}
    assert names >= {"stem", "separable", "depthwise", "pointwise", "pointwise_sum", "head_dense"}
    assert launched <= held
