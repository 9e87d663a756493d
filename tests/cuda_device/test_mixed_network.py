"""A whole network for sm_90 with kernels of both kinds inside: what its host code launches.

Tensor expressions compute on the device made of host memory. Triton's machine code cannot run
there: each launch of it is recorded, and NumPy computes in its place from the memory that its
arguments point to, so that wrong arguments give wrong logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda_device
import numpy as np
import pytest

from kernels import kernel, kernels_for
from kernels.reference import reference
from kernels.tolerance import network_tolerance
from kernels.workload import Pointwise
from targets import machines
from tune import weights
from tune.builder import export
from tune.cubin import cubins, inspect
from tune.graph import assemble
from tune.mobilenet import MobileNet
from tune.plan import Choice

SM_90 = machines("cuda").DEVICES["sm_90"]
MODEL = MobileNet(alpha=0.25, resolution=32, classes=10, dtype="float16")
INFERENCES = 3


@dataclass(frozen=True)
class Seen:
    """What one inference did. `off` is in tolerances."""

    off: float
    launches: tuple[cuda_device.Launch, ...]


def choices() -> tuple[Choice, ...]:
    """Triton's kernels for pointwise layers, TVM's for all others, each with its default."""
    found = []
    for layer in MODEL.layers:
        kind = "triton." if isinstance(layer.workload, Pointwise) else "te.cuda."
        name = next(n for n in kernels_for(layer.workload, SM_90) if n.startswith(kind))
        config = kernel(name).space(layer.workload, SM_90).default
        found.append(Choice(layers=(layer,), kernel=name, config=config, why="default"))
    return tuple(found)


def pointwise(workload: Pointwise, call: Any) -> Callable[[cuda_device.Launch], None]:
    """What the kernel computes, from the memory that a launch's arguments point to."""

    def compute(launch: cuda_device.Launch) -> None:
        x, wt, bias, y = (
            cuda_device.array(pointer, tensor.shape, tensor.dtype)
            for pointer, tensor in zip(launch.arguments, call.arguments, strict=False)
        )
        given = (wt[: workload.Ci, : workload.Co], bias[: workload.Co])
        y[...] = reference(workload, x.reshape(workload.x_shape), given).reshape(y.shape)

    return compute


def infer(path: str) -> list[Seen]:
    """Build the network into the library at `path`, load it anew, and call it. Runs over there."""
    import tvm
    from tvm import relax
    from tvm.runtime.vm import VirtualMachine

    from targets.cuda_toolkit import compiling

    folded = weights.fold(weights.random(MODEL, 0), MODEL)
    for choice in choices():
        if choice.kernel == "triton.pointwise":
            call = kernel(choice.kernel).call(choice.workload, choice.config, SM_90)  # type: ignore[attr-defined]
            [launch] = call.launches
            compute = pointwise(choice.workload, call)  # type: ignore[arg-type]
            cuda_device.stand_in(launch.name(call.dtypes), compute)
    with compiling(SM_90, {"relax.backend.use_cuda_graph": True}):
        built = relax.build(assemble(choices(), folded, SM_90), target=SM_90.tvm())
    export(built, SM_90, Path(path))
    machine = VirtualMachine(tvm.runtime.load_module(path), tvm.cuda(0))
    seen = []
    for seed in range(INFERENCES):
        image = np.random.default_rng(seed).uniform(-1, 1, MODEL.input_shape).astype(MODEL.dtype)
        cuda_device.launches()
        logits = machine["main"](tvm.runtime.tensor(image, tvm.cuda(0))).numpy()
        value = image
        for layer in MODEL.layers:
            wt, bias = folded[layer.name]
            given = (wt.astype(MODEL.dtype), bias)
            value = reference(layer.workload, value.reshape(layer.workload.x_shape), given)
        terms = [layer.workload.terms for layer in MODEL.layers]
        allowed = network_tolerance(MODEL.dtype, terms, float(np.abs(value).max()))
        off = float(np.abs(logits.astype(np.float64) - value).max()) / allowed
        seen.append(Seen(off, tuple(cuda_device.launches())))
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
    assert [one.off <= 1 for one in seen] == [True] * INFERENCES


def test_every_layer_is_launched_once_in_its_order_as_it_was_compiled(seen: list[Seen]) -> None:
    from kernels.triton.aot import compile_call

    for one in seen:
        assert len(one.launches) == len(MODEL.layers)
        for launch, choice in zip(one.launches, choices(), strict=True):
            if choice.kernel != "triton.pointwise":
                assert launch.by == "host"
                continue
            call = kernel(choice.kernel).call(choice.workload, choice.config, SM_90)  # type: ignore[attr-defined]
            [binary] = compile_call(call, SM_90)
            assert launch.by == "stand-in"
            assert launch.kernel == binary.name
            assert launch.grid == (binary.programs, 1, 1)
            assert launch.block == (binary.threads, 1, 1)
            assert launch.shared == binary.shared_bytes
            assert len(launch.arguments) == len(binary.tensors) + 2
            assert launch.arguments[-2:] == (0, 0)


def test_all_but_the_first_and_the_last_come_from_a_graph_the_second_time(seen: list[Seen]) -> None:
    inner = len(MODEL.layers) - 2
    assert [sum(launch.graph for launch in one.launches) for one in seen] == [0, inner, inner]


def test_the_library_holds_the_machine_code(seen: list[Seen], library: Path) -> None:
    held = {one.name for cubin in cubins(library.read_bytes()) for one in inspect(cubin).kernels}
    launched = {launch.kernel for launch in seen[0].launches if launch.by == "stand-in"}
    assert len(launched) > 5
    assert launched <= held
