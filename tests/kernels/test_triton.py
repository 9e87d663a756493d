"""Every Triton kernel in Triton's interpreter against the reference, on small and hostile shapes.

The interpreter has worker processes of its own; this one only picks cases and reads what came of
them.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_interpreter import Case, interpret, outcome

from kernels import KERNELS, kernel, kernels_for
from kernels.space import Config
from kernels.workload import (
    ACTIVATIONS,
    Conv,
    Depthwise,
    Head,
    Pointwise,
    Separable,
    Workload,
)
from targets import machines
from targets.target import Target

CUDA = machines("cuda")
H100 = CUDA.DEVICES["h100"]
CAPABLE = {name for name, device in CUDA.DEVICES.items() if device.gpu.arch != "sm_75"}
# On so few SMs small shapes, too, have tiles in groups and programs that take several.
SMALL = replace(H100, device="small", limits=replace(H100.gpu, sms=2))
NAMES = [name for name in KERNELS if name.startswith("triton.")]
MOST_PROGRAMS = 40  # of a case; one takes the interpreter about 10 ms
WORKERS = min(2, os.cpu_count() or 1)

SMALL_SHAPES: list[Workload] = [
    *(
        Depthwise(N=N, Hi=Hi, Wi=Wi, C=C, K=K, stride=stride, pad=pad)
        for N, Hi, Wi, C, K, stride, pad in (
            (1, 5, 7, 8, 3, 1, (1, 1, 1, 1)),
            (1, 8, 8, 24, 3, 2, (0, 1, 0, 1)),
            (2, 9, 6, 20, 3, 2, (1, 0, 2, 1)),
            (1, 6, 7, 3, 3, 1, (0, 0, 0, 0)),
            (1, 1, 1, 33, 3, 2, (1, 1, 1, 1)),
            (2, 8, 5, 33, 5, 1, (2, 1, 0, 3)),
        )
    ),
    *(
        Pointwise(N=N, H=H, W=W, Ci=Ci, Co=Co)
        for N, H, W, Ci, Co in (
            (1, 5, 7, 24, 40),
            (3, 5, 7, 72, 33),
            (1, 2, 2, 520, 16),
            (2, 1, 1, 3, 1),
            (1, 1, 1, 1, 100),
        )
    ),
    *(
        Separable(N=N, Hi=Hi, Wi=Wi, C=C, Co=Co, K=K, stride=stride, pad=pad)
        for N, Hi, Wi, C, Co, K, stride, pad in (
            (1, 8, 8, 24, 40, 3, 1, (1, 1, 1, 1)),
            (3, 9, 6, 40, 33, 3, 2, (0, 1, 0, 1)),
            (1, 6, 16, 3, 8, 3, 1, (1, 0, 2, 1)),
            (1, 1, 1, 1, 1, 3, 2, (1, 1, 1, 1)),
            (2, 8, 5, 33, 20, 5, 1, (2, 1, 0, 3)),
            (2, 4, 32, 40, 24, 3, 1, (1, 1, 1, 1)),
        )
    ),
    *(
        Conv(N=N, Hi=Hi, Wi=Wi, Ci=Ci, Co=Co, K=K, stride=stride, pad=pad)
        for N, Hi, Wi, Ci, Co, K, stride, pad in (
            (1, 9, 11, 3, 24, 3, 2, (0, 1, 0, 1)),
            (3, 6, 21, 3, 40, 3, 1, (1, 0, 2, 1)),
            (2, 7, 5, 4, 3, 4, 3, (0, 3, 1, 2)),
            (1, 1, 1, 1, 1, 3, 1, (1, 1, 1, 1)),
            (1, 9, 12, 3, 24, 3, 2, (0, 1, 0, 1)),
            (2, 7, 10, 3, 20, 3, 2, (1, 0, 2, 1)),
        )
    ),
    *(
        Head(N=N, H=H, W=W, Ci=Ci, Co=Co)
        for N, H, W, Ci, Co in (
            (1, 7, 7, 72, 33),
            (6, 2, 3, 1, 101),
            (18, 1, 1, 40, 20),
            (1, 40, 40, 24, 9),
            (2, 1, 1, 4500, 20),
        )
    ),
]


def programs(name: str, workload: Workload, config: Config, target: Target) -> int:
    module: Any = kernel(name)
    return sum(launch.programs for launch in module.call(workload, config, target).launches)


def configs(name: str, workload: Workload, target: Target, seen: set[object]) -> list[Config]:
    """The default, and up to two others that have choices of knobs that none before had."""
    space = kernel(name).space(workload, target)
    others = list(space)
    random.Random(workload.key).shuffle(others)
    taken: list[Config] = []
    for config in (space.default, *others):
        fresh = {(name, workload.dtype, *item) for item in config.items()} - seen
        if (fresh or not taken) and programs(name, workload, config, target) <= MOST_PROGRAMS:
            seen |= fresh
            taken.append(config)
        if len(taken) == 3:
            break
    return taken


def cases() -> list[Case]:
    seen: set[object] = set()
    return [
        Case(workload=workload, name=name, config=config, target=target)
        for shape in SMALL_SHAPES
        for workload in (shape, replace(shape, dtype="float16"))
        for name in kernels_for(workload, H100)
        if name in NAMES
        for target in (H100, SMALL)
        for config in configs(name, workload, target, seen)
    ]


def activation_cases() -> list[Case]:
    shapes = [next(s for s in SMALL_SHAPES if kernel(name).supports(s, H100)) for name in NAMES]
    return [
        Case(
            workload=workload,
            name=name,
            config=kernel(name).space(workload, SMALL).default,
            target=SMALL,
        )
        for name, shape in zip(NAMES, shapes, strict=True)
        for activation in ACTIVATIONS
        for workload in (replace(shape, activation=activation),)
    ]


CASES = cases()
ACTIVATION_CASES = activation_cases()
PLANTED = [
    replace(each, plant=True)
    for name in NAMES
    for dtype in ("float32", "float16")
    for each in [next(c for c in CASES if c.name == name and c.workload.dtype == dtype)]
]


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[int, Future[str | None]]]:
    """By the identity of a case; all are under way from the first test on."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context, initializer=interpret) as workers:
        yield {id(c): workers.submit(outcome, c) for c in (*CASES, *ACTIVATION_CASES, *PLANTED)}
        workers.shutdown(cancel_futures=True)


@pytest.mark.parametrize("each", CASES, ids=str)
def test_small_and_hostile_shapes(each: Case, outcomes: dict[int, Future[str | None]]) -> None:
    assert outcomes[id(each)].result() is None


@pytest.mark.parametrize("each", ACTIVATION_CASES, ids=str)
def test_activations(each: Case, outcomes: dict[int, Future[str | None]]) -> None:
    assert outcomes[id(each)].result() is None


@pytest.mark.parametrize("each", PLANTED, ids=str)
def test_kernel_that_is_one_tap_off_is_caught(
    each: Case, outcomes: dict[int, Future[str | None]]
) -> None:
    found = outcomes[id(each)].result()
    assert found is not None
    assert found.startswith("off by ")


def test_every_choice_is_among_those_tested() -> None:
    """Of knobs that change what a kernel does, not only how large its tiles are."""
    tested = {(c.name, c.workload.dtype, *item) for c in CASES for item in c.config.items()}
    kinds = {
        "triton.depthwise": {"ORDER": ("channels", "pixels"), "ROWS": (1, 2, 4), "COLUMNS": (1, 2)},
        "triton.pointwise": {"PERSISTENT": (0, 1), "SPLIT_CI": (1, 2, 4), "GROUP_P": (1, 8)},
        "triton.separable": {"BLOCK_WO": (0, 8), "WINDOW": ("rows", "whole", "ahead")}
        | dict.fromkeys(("ROWS", "COLUMNS"), (1, 2)),
        "triton.separable_swapped": {"BLOCK_WO": (0, 8), "RESIDENT": (1, 2)}
        | dict.fromkeys(("ROWS", "COLUMNS"), (1, 2)),
        "triton.stem": {"BLOCK_HO": (1, 2, 4), "BLOCK_WO": (8, 16)},
        "triton.head": {"LAUNCHES": (1, 2), "BLOCK_N": (1, 16)},
    }
    assert set(kinds) == set(NAMES)
    wanted = {
        (name, dtype, knob, choice)
        for name, knobs in kinds.items()
        for dtype in ("float16", "float32")
        for knob, choices in knobs.items()
        for choice in choices
    }
    wanted |= {
        (name, "float32", "PRECISION", word)
        for name in ("triton.pointwise", "triton.separable", "triton.stem")
        for word in ("ieee", "tf32x3")
    }
    assert wanted - tested == set()


def test_run_refuses_other_arguments() -> None:
    import torch

    from kernels.triton.run import run

    workload = Pointwise(N=1, H=2, W=2, Ci=16, Co=16)
    module: Any = kernel("triton.pointwise")
    call = module.call(workload, module.space(workload, H100).default, H100)
    half = [torch.zeros(tensor.shape, dtype=torch.float16) for tensor in call.arguments]
    with pytest.raises(ValueError, match=r"^arguments are .*; expected .*; pack weights"):
        run(call, half)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_refuse_what_they_cannot_do(name: str) -> None:
    x86 = machines("x86").DEVICES["x86-64-v3"]
    for workload in SMALL_SHAPES:
        assert not kernel(name).supports(workload, x86)
    large = [
        Depthwise(N=1, Hi=1 << 15, Wi=1 << 15, C=1, stride=1, pad=(1, 1, 1, 1)),
        Depthwise(N=1, Hi=9, Wi=9, C=1, K=9, stride=1, pad=(1, 1, 1, 1)),
        Pointwise(N=1 << 15, H=1 << 8, W=1 << 7, Ci=1, Co=1),
        Separable(N=1, Hi=9, Wi=9, C=1, Co=1, K=9, stride=1, pad=(1, 1, 1, 1)),
        Conv(N=1, Hi=9, Wi=9, Ci=16, Co=1, stride=1, pad=(1, 1, 1, 1)),
        Head(N=1, H=1 << 15, W=1 << 15, Ci=1, Co=1),
    ]
    assert not any(kernel(name).supports(workload, H100) for workload in large)


sizes = st.integers(1, 1100)
images = st.integers(3, 230)
sides = st.tuples(*[st.integers(0, 2)] * 4)
strides = st.integers(1, 2)
batches = st.sampled_from((1, 2, 8, 64, 256))
dtypes = st.sampled_from(("float16", "float32"))
window = {
    "N": batches,
    "Hi": images,
    "Wi": images,
    "stride": strides,
    "pad": sides,
    "dtype": dtypes,
}
product = {"N": batches, "H": images, "W": images, "Ci": sizes, "Co": sizes, "dtype": dtypes}
shapes = st.builds(Depthwise, C=sizes, **window)  # type: ignore[arg-type]
shapes |= st.builds(Separable, C=sizes, Co=sizes, **window)  # type: ignore[arg-type]
shapes |= st.builds(Conv, Ci=st.integers(1, 14), Co=sizes, **window)  # type: ignore[arg-type]
shapes |= st.builds(Pointwise, **product)  # type: ignore[arg-type]
shapes |= st.builds(Head, **product)  # type: ignore[arg-type]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(workload=shapes, device=st.sampled_from(sorted(CAPABLE)))
@example(
    workload=Depthwise(N=1, Hi=3, Wi=3, C=65, stride=1, pad=(0, 0, 0, 0), dtype="float16"),
    device="a10",
)
@example(
    workload=Depthwise(N=256, Hi=3, Wi=3, C=33, stride=1, pad=(0, 0, 0, 0), dtype="float16"),
    device="a10",
)
def test_every_shape_has_a_few_hundred_configs_on_every_device(
    workload: Workload, device: str
) -> None:
    target = CUDA.DEVICES[device]
    for name in [name for name in kernels_for(workload, target) if name in NAMES]:
        module: Any = kernel(name)
        space = module.space(workload, target)
        assert space.default in space
        assert sum(1 for _ in space) <= 1000
        for config in (space.default, next(iter(space))):
            call = module.call(workload, config, target)
            packed = module.pack(workload, config, tuple(map(np.zeros, workload.weight_shapes)))
            assert [array.shape for array in packed] == [t.shape for t in call.arguments[1:-1]]
            assert all(0 < launch.programs < 1 << 31 for launch in call.launches)
