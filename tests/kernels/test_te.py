"""Every kernel, compiled and run against the reference, on friendly shapes and hostile ones."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels import KERNELS, KINDS, kernel, kernels_for, least_flops
from kernels.reference import reference
from kernels.space import Config, blocks
from kernels.te import peak
from kernels.te.avx.product import CHAINS, heights
from kernels.tolerance import tolerance
from kernels.workload import (
    ACTIVATIONS,
    Conv,
    Depthwise,
    Head,
    Pointwise,
    Separable,
    Workload,
    flops,
    separables,
)
from targets import machines
from targets.target import Target
from tune.builder import UNCHECKED, compiling
from tune.mobilenet import MobileNet
from tune.verify import case

X86 = machines("x86")
# The host, and beside it AVX2, which runs on every machine that the project supports, where the
# host's vectors are others.
TARGETS = {
    (target.cpu.vector_bits, target.cpu.vector_registers): target
    for target in (X86.DEVICES["x86-64-v3"], X86.host())
}.values()
ON_EACH = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.device)
NAMES = [name for name in KERNELS if "x86" in KINDS[name.rpartition(".")[0]]]
TILES = {name for name in NAMES if name.startswith("te.amx.")}  # whose tests are `test_te_amx`, too
STRAIGHT = ["te.avx.pointwise", "te.avx.pointwise_strassen", "te.avx.separable"]
STRENGTH = 4  # of inputs, so that ReLU6 cuts; errors grow with it
MOST_CONFIGS = 20_000  # of a space, which a search lists in no time
SMALL_MACS = 2_000_000  # up to which every target has a turn, and configs other than the default
FENCE = 64  # values around each argument that are NaN, and have to stay it


def distinct(*models: MobileNet) -> list[Workload]:
    """Of every layer and of every two that can be one."""
    single = [[layer.workload for layer in model.layers] for model in models]
    together = [separables(workloads) for workloads in single]
    return list(dict.fromkeys(workload for found in (*single, *together) for workload in found))


NETWORKS = distinct(MobileNet(), MobileNet(alpha=0.25, resolution=128))
SMALL = [workload for workload in NETWORKS if workload.macs <= SMALL_MACS]
LARGE = [workload for workload in NETWORKS if workload.macs > SMALL_MACS]
SOME = LARGE[::4]  # of each kind

HOSTILE: list[Workload] = [
    *(Pointwise(N=1, H=5, W=7, Ci=Ci, Co=Co) for Ci, Co in ((8, 20), (20, 8), (3, 1), (1, 3))),
    Pointwise(N=3, H=5, W=7, Ci=24, Co=40),
    Pointwise(N=1, H=1, W=1, Ci=128, Co=100),
    Pointwise(N=3, H=1, W=1, Ci=1, Co=1),
    Pointwise(N=1, H=1, W=1, Ci=8, Co=1),
    *(
        Depthwise(N=1, Hi=5, Wi=7, C=C, stride=stride, pad=pad)
        for C, stride, pad in (
            (8, 1, (1, 1, 1, 1)),
            (20, 2, (0, 1, 0, 1)),
            (3, 2, (1, 0, 2, 1)),
            (1, 1, (0, 0, 0, 0)),
        )
    ),
    Depthwise(N=3, Hi=9, Wi=6, C=40, stride=2, pad=(0, 1, 0, 1)),
    *(
        Depthwise(N=2, Hi=9, Wi=11, C=48, stride=stride, pad=pad)
        for stride in (1, 2)
        for pad in ((1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 2))
    ),
    Depthwise(N=1, Hi=9, Wi=8, C=16, K=2, stride=2, pad=(0, 1, 1, 1)),
    *(Depthwise(N=1, Hi=1, Wi=1, C=C, stride=2, pad=(1, 1, 1, 1)) for C in (20, 1)),
    Depthwise(N=2, Hi=8, Wi=5, C=33, K=5, stride=1, pad=(2, 1, 0, 3)),
    Conv(N=1, Hi=5, Wi=7, Ci=3, Co=8, stride=2, pad=(0, 1, 0, 1)),
    Conv(N=3, Hi=6, Wi=9, Ci=3, Co=20, stride=2, pad=(1, 0, 2, 1)),
    Conv(N=2, Hi=6, Wi=40, Ci=3, Co=48, stride=2, pad=(1, 0, 2, 1)),
    Conv(N=1, Hi=7, Wi=9, Ci=4, Co=16, K=4, stride=3, pad=(0, 3, 1, 2)),
    *(Conv(N=1, Hi=1, Wi=1, Ci=3, Co=Co, stride=1, pad=(1, 1, 1, 1)) for Co in (32, 1)),
    Conv(N=1, Hi=5, Wi=7, Ci=1, Co=1, stride=1, pad=(1, 1, 1, 1)),
    Conv(N=2, Hi=7, Wi=5, Ci=4, Co=3, K=4, stride=3, pad=(0, 3, 1, 2)),
    *(Head(N=1, H=5, W=7, Ci=Ci, Co=Co) for Ci, Co in ((8, 20), (20, 3), (3, 1))),
    Head(N=3, H=1, W=1, Ci=40, Co=33),
    Head(N=6, H=2, W=3, Ci=1, Co=101),
    *(
        Separable(N=1, Hi=5, Wi=7, C=C, Co=Co, stride=stride, pad=pad)
        for C, Co, stride, pad in (
            (8, 20, 1, (1, 1, 1, 1)),
            (20, 8, 2, (0, 1, 0, 1)),
            (3, 1, 2, (1, 0, 2, 1)),
            (1, 3, 1, (0, 0, 0, 0)),
        )
    ),
    Separable(N=3, Hi=9, Wi=6, C=40, Co=24, stride=2, pad=(0, 1, 0, 1)),
    Separable(N=1, Hi=1, Wi=1, C=8, Co=40, stride=2, pad=(1, 1, 1, 1)),
    Separable(N=2, Hi=8, Wi=5, C=33, Co=17, K=5, stride=1, pad=(2, 1, 0, 3)),
    # Whole vectors, in tiles that are not full.
    Pointwise(N=3, H=5, W=7, Ci=48, Co=80),
    Pointwise(N=1, H=1, W=1, Ci=16, Co=16),
    *(
        Separable(N=2, Hi=9, Wi=11, C=48, Co=80, stride=stride, pad=pad)
        for stride in (1, 2)
        for pad in ((1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 2))
    ),
    # Halves are whole vectors, too, in tiles that are not full; a pixel of an odd number is alone.
    Pointwise(N=1, H=3, W=5, Ci=32, Co=96),
    Pointwise(N=1, H=29, W=2, Ci=64, Co=32),
    Pointwise(N=2, H=1, W=1, Ci=32, Co=64),
    Pointwise(N=1, H=1, W=3, Ci=32, Co=32),
    Separable(N=3, Hi=9, Wi=7, C=32, Co=96, stride=1, pad=(1, 1, 1, 1)),
    Separable(N=1, Hi=3, Wi=4, C=32, Co=32, stride=2, pad=(0, 1, 0, 1)),
    Separable(N=1, Hi=1, Wi=1, C=16, Co=32, stride=2, pad=(1, 1, 1, 1)),
    Separable(N=1, Hi=9, Wi=8, C=16, Co=112, K=2, stride=2, pad=(0, 1, 1, 1)),
    Pointwise(N=1, H=1, W=3, Ci=64, Co=192),
]
# Quarters are whole vectors, too, and tiles of pixels are more or less full.
QUARTERS: list[Workload] = [
    *(Pointwise(N=1, H=1, W=W, Ci=64, Co=192) for W in (4, 5, 6, 7, 29, 98, 131)),
    Separable(N=2, Hi=9, Wi=7, C=64, Co=64, stride=1, pad=(1, 1, 1, 1)),
    Separable(N=1, Hi=5, Wi=8, C=128, Co=64, stride=2, pad=(0, 1, 0, 1)),
]


def fenced(array: np.ndarray) -> tuple[np.ndarray, Any]:
    """A tensor of TVM's that holds `array` amid NaNs, and the memory with its fences."""
    memory = np.full(array.size + 2 * FENCE + 16, np.nan, array.dtype)
    start = FENCE + (-(memory.ctypes.data // 4 + FENCE)) % 16  # TVM asks for 64 bytes
    inside = memory[start : start + array.size].reshape(array.shape)
    inside[...] = array
    return memory, tvm.runtime.from_dlpack(inside)


@lru_cache(maxsize=2)
def arguments(workload: Workload) -> tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
    """x and weights as `kernels.tolerance` assumes, but for the strength, and the reference's y."""
    x, weights, _ = case(workload)
    x, weights = STRENGTH * x, tuple(STRENGTH * w if w.ndim == 1 else w for w in weights)
    return x, weights, reference(workload, x, weights)


def check(workload: Workload, name: str, config: Config, target: Target) -> None:
    """Compile and run one candidate; its output is right, and it wrote to nothing else."""
    x, weights, expected = arguments(workload)
    lowered = kernel(name).lower(workload, config, target)
    shapes = [tuple(map(int, buffer.shape)) for buffer in lowered["main"].params]
    packed = kernel(name).pack(workload, config, weights)
    nothing = np.full(shapes[-1], np.nan, workload.dtype)
    given = [fenced(array) for array in (x.reshape(shapes[0]), *packed, nothing)]
    with compiling(target, UNCHECKED):
        main = tvm.compile(lowered, target=target.tvm()).mod["main"]
    main(*(tensor for _, tensor in given))

    y = given[-1][1].numpy().reshape(workload.y_shape)
    allowed = STRENGTH * tolerance(workload.dtype, workload.terms)
    np.testing.assert_allclose(y, expected, rtol=0, atol=allowed, err_msg=str(config))
    for (memory, tensor), array in zip(given, (x, *packed, y), strict=True):
        assert np.array_equal(tensor.numpy().ravel(), array.ravel())
        assert np.isnan(memory).sum() == memory.size - array.size, f"{config} wrote outside"


def candidates(workload: Workload, target: Target, most: int) -> list[tuple[str, Config]]:
    """Of every kernel for it the default config, and some others drawn at random."""
    found = []
    for name in kernels_for(workload, target):
        space = kernel(name).space(workload, target)
        default = space.default
        others = [config for config in space if config != default]
        random.Random(workload.key).shuffle(others)
        found += [(name, config) for config in (default, *others[:most])]
    return found


@ON_EACH
@pytest.mark.parametrize("workload", SMALL, ids=lambda workload: workload.key)
def test_small_layers_of_mobilenet(workload: Workload, target: Target) -> None:
    found = candidates(workload, target, most=1)
    assert found
    for name, config in found:
        check(workload, name, config, target)


@pytest.mark.parametrize(
    ("workload", "target"),
    [
        *((workload, X86.host()) for workload in LARGE),
        *((workload, target) for target in TARGETS if target != X86.host() for workload in SOME),
    ],
    ids=lambda value: getattr(value, "key", None) or value.device,
)
def test_large_layers_of_mobilenet(workload: Workload, target: Target) -> None:
    found = candidates(workload, target, most=0)
    assert found
    for name, config in found:
        check(workload, name, config, target)


@ON_EACH
@pytest.mark.parametrize("workload", HOSTILE, ids=lambda workload: workload.key)
def test_hostile_shapes(workload: Workload, target: Target) -> None:
    found = candidates(workload, target, most=2 if target == X86.host() else 1)
    assert found
    for name, config in found:
        check(workload, name, config, target)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("workload", HOSTILE[4::5], ids=lambda workload: workload.key)
def test_activations(workload: Workload, activation: str) -> None:
    workload = replace(workload, activation=activation)
    for name, config in candidates(workload, X86.host(), most=0):
        check(workload, name, config, X86.host())


def test_every_kernel_is_among_those_tested() -> None:
    for target in TARGETS:
        tested = {name for workload in NETWORKS for name in kernels_for(workload, target)}
        assert tested == set(NAMES) - (set() if target.features >= X86.AMX else TILES)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_refuse_what_they_cannot_do(name: str) -> None:
    target = X86.DEVICES["x86-64-v3"]
    target = replace(target, features=target.features | X86.AMX)
    for workload in NETWORKS:
        assert not kernel(name).supports(replace(workload, dtype="float16"), target)
        assert not kernel(name).supports(workload, replace(target, kind="cuda"))


def test_unknown_kernel() -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        kernel("te.magic")
    assert str(error.value) == (
        f"kernel 'te.magic' is not known; expected one of {', '.join(KERNELS)}; "
        f"a new kernel is a new file and a line in kernels/__init__.py"
    )


def windows(sizes: st.SearchStrategy[int], channels: st.SearchStrategy[int]) -> Any:
    """Depthwise layers and stems over any image."""
    common: dict[str, Any] = {"N": sizes, "Hi": images, "Wi": images}
    common |= {"stride": st.integers(1, 2), "pad": sides}
    return st.builds(Depthwise, C=channels, **common) | st.builds(
        Conv, Ci=st.integers(1, 7), Co=channels, **common
    )


sizes = st.integers(1, 300)
sides = st.tuples(*[st.integers(0, 2)] * 4)
images = st.integers(3, 230)
shapes = st.builds(Pointwise, N=st.integers(1, 9), H=sizes, W=sizes, Ci=sizes, Co=sizes)
shapes |= st.builds(Head, N=st.integers(1, 9), H=sizes, W=sizes, Ci=sizes, Co=sizes)
shapes |= st.builds(
    Separable,
    N=st.integers(1, 9),
    Hi=images,
    Wi=images,
    C=sizes,
    Co=sizes,
    stride=st.integers(1, 2),
    pad=sides,
)
shapes |= windows(sizes, sizes)


@settings(deadline=None, derandomize=True)
@given(workload=shapes, device=st.sampled_from(sorted(X86.DEVICES)))
@example(workload=Pointwise(N=1, H=231, W=288, Ci=32, Co=137), device="alderlake")
@example(
    workload=Separable(N=1, Hi=3, Wi=182, C=1, Co=1, stride=1, pad=(0, 0, 0, 2)),
    device="alderlake",
)
def test_every_shape_has_configs_on_every_device(workload: Workload, device: str) -> None:
    target = X86.DEVICES[device]
    for name in kernels_for(workload, target):
        space = kernel(name).space(workload, target)
        assert space.default in space
        assert 1 <= sum(1 for _ in islice(space, MOST_CONFIGS + 1)) <= MOST_CONFIGS


# A loop in assembly: its label, then instructions up to the jump back to that label.
LOOP = re.compile(r"^(\.L\w+):[^\n]*\n((?:(?!^\.L\w+:).*\n)*?)\s+j\w+\s+\1$", re.MULTILINE)


def hot_loop(name: str, workload: Workload, config: Config, target: Target) -> list[str]:
    """The instructions of the innermost loop that multiplies pixels with weights most."""
    lowered = kernel(name).lower(workload, config, target)
    assembly = tvm.compile(lowered, target=target.tvm()).mod.inspect_source("asm")
    bodies = [match[2] for match in LOOP.finditer(assembly)]
    products = [body for body in bodies if re.search(r"vbroadcastss|\{1to", body)]
    body = max(products, key=lambda body: body.count("vfmadd"))
    lines = (line.split("#")[0].strip() for line in body.splitlines())
    return [line for line in lines if line and not line.startswith(".")]


@pytest.mark.parametrize("device", ["znver4", "x86-64-v4"])
def test_pointwise_loop_is_only_multiply_adds(device: str) -> None:
    """No condition on a pixel, no half-width vectors, and sums in registers but for a few.

    A few cost nothing: 16 accesses to the stack beside 112 multiply-adds, UNROLL_CI 4, run at 116
    GFLOP/s, the peak; 60 beside 56, UNROLL_CI 1, at 71 (7x64, znver4, 1 thread, 2026-11-24).
    """
    target = X86.DEVICES[device]
    workload = Pointwise(N=1, H=14, W=14, Ci=512, Co=512)
    config = kernel("te.pointwise").space(workload, target).default
    loop = hot_loop("te.pointwise", workload, config, target)
    multiplied = [line for line in loop if line.startswith("vfmadd") and "zmm" in line]
    vectors = blocks(int(config["BLOCK_CO"]), target.cpu.lanes("float32"))
    steps, left = divmod(len(multiplied), int(config["BLOCK_P"]) * vectors)
    assert (steps >= 1, left) == (True, 0)
    rest = [line for line in loop if line not in multiplied]
    assert len(rest) < len(multiplied)
    assert [line for line in rest if line.startswith(("j", "call", "cmov", "k"))] == []
    stack = [line for line in loop if "%rsp" in line or "%rbp" in line]
    assert len(stack) < len(multiplied) / 4
    # AT&T order: what stands last is written to.
    stored = [line for line in loop if line.startswith("v") and line.endswith(")")]
    assert set(stored) <= set(stack)


@pytest.mark.parametrize("device", ["sapphirerapids", "znver4", "haswell"])
@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_pointwise_loop_loads_multiplies_and_counts(name: str, device: str) -> None:
    """One loop over all channels: it computes no address but the next ones, and nothing spills."""
    target = X86.DEVICES[device]
    pointwise = Pointwise(N=1, H=14, W=14, Ci=512, Co=512)
    separable = Separable(N=1, Hi=14, Wi=14, C=512, Co=512, stride=1, pad=(1, 1, 1, 1))
    workload = pointwise if "pointwise" in name else separable
    config = kernel(name).space(workload, target).default
    steps, rows = int(config["UNROLL_CI"]), int(config["BLOCK_P"])
    if "pointwise" in name:
        config["CHUNK"] = blocks(pointwise.pixels, rows)  # that share a block of weights
    vectors = int(config["BLOCK_CO"]) // target.cpu.lanes("float32")
    loop = Counter(line.split()[0] for line in hot_loop(name, workload, config, target))
    counting = [one for one in loop if one.startswith(("add", "sub", "inc", "dec", "cmp"))]
    moved = sum(loop.pop(one) for one in counting)
    assert moved <= 2 * steps + 2
    assert loop.pop("vfmadd231ps") == steps * rows * vectors
    assert loop == {
        "vmovups": steps * vectors,
        "vbroadcastss": steps * rows,
        "prefetcht1": 1,
    }


def test_seven_products_of_halves_twice_are_49_instead_of_64() -> None:
    separable = Separable(N=1, Hi=14, Wi=14, C=512, Co=512, stride=1, pad=(1, 1, 1, 1))
    whole = {one: flops(one) for one in (separable, separable.depthwise, separable.pointwise)}
    fewer = whole[separable.pointwise] * 15 // 64
    for workload, name in (
        (separable.pointwise, "te.avx.pointwise"),
        (separable, "te.avx.separable"),
    ):
        assert least_flops(name, workload) == whole[workload]
        assert least_flops(f"{name}_strassen", workload) == whole[workload] - fewer


@ON_EACH
@pytest.mark.parametrize("workload", QUARTERS, ids=lambda workload: workload.key)
def test_products_of_quarters(workload: Workload, target: Target) -> None:
    """Of register tiles as wide the last config: tasks are large, and have several tiles."""
    (name,) = (name for name in kernels_for(workload, target) if name.endswith("_strassen"))
    space = kernel(name).space(workload, target)
    found = {config["BLOCK_CO"]: config for config in space if config["LEVELS"] == 2}
    assert found
    for config in found.values():
        check(workload, name, config, target)


def worst_error(workload: Pointwise, name: str, config: Config, target: Target) -> float:
    """On inputs as networks have them, of one sign and of up to 6."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 6, workload.x_shape).astype(np.float32)
    wt = rng.standard_normal((workload.Ci, workload.Co)) / workload.Ci**0.5
    weights = (wt.astype(np.float32), rng.standard_normal(workload.Co).astype(np.float32))
    expected = reference(workload, x, weights)
    lowered = kernel(name).lower(workload, config, target)
    arrays = (x.reshape(-1, workload.Ci), *kernel(name).pack(workload, config, weights))
    y = tvm.runtime.empty((workload.pixels, workload.Co), "float32")
    module = tvm.compile(lowered, target=target.tvm()).mod
    module["main"](*map(tvm.runtime.tensor, arrays), y)
    error: float = np.abs(y.numpy().reshape(expected.shape) - expected).max()
    return error


@ON_EACH
@pytest.mark.parametrize("levels", [1, 2])
def test_sums_of_halves_err_little_more_than_sums_of_all(levels: int, target: Target) -> None:
    workload = Pointwise(N=1, H=7, W=7, Ci=512, Co=128, activation="none")

    def error(name: str) -> float:
        space = kernel(name).space(workload, target)
        config = next(one for one in space if one.get("LEVELS", levels) == levels)
        return worst_error(workload, name, config, target)

    straight, halves = error("te.avx.pointwise"), error("te.avx.pointwise_strassen")
    assert halves < 2 * 2**levels * straight


@ON_EACH
@pytest.mark.parametrize("name", ["te.avx.pointwise", "te.avx.separable"])
def test_no_tile_has_too_few_sums_to_hide_a_multiply_add(name: str, target: Target) -> None:
    """49 pixels in tiles of 6 would leave one: tiles are 5 and 6 pixels high then, and right."""
    pointwise = Pointwise(N=1, H=7, W=7, Ci=16, Co=192)
    separable = Separable(N=1, Hi=7, Wi=7, C=16, Co=192, stride=1, pad=(1, 1, 1, 1))
    workload = pointwise if name == "te.avx.pointwise" else separable
    lanes = target.cpu.lanes("float32")
    # Of each tile and order the last config: one task has all pixels.
    found = {
        (config["BLOCK_P"], config["BLOCK_CO"], config["KEEP"]): config
        for config in kernel(name).space(workload, target)
    }
    thin = [
        config
        for config in found.values()
        if 0 < 49 % int(config["BLOCK_P"]) * int(config["BLOCK_CO"]) < CHAINS * lanes
    ]
    assert thin
    for config in thin:
        rows, vectors = int(config["BLOCK_P"]), int(config["BLOCK_CO"]) // lanes
        tall = [run.size for run in heights(49, rows, vectors) for _ in range(run.start, run.stop)]
        assert (sum(tall), len(tall)) == (49, blocks(49, rows))
        assert max(tall) - min(tall) <= 1
        check(workload, name, config, target)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_in_few_registers_spills_nothing(stride: int) -> None:
    pad = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
    workload = Depthwise(N=1, Hi=28, Wi=28, C=32, stride=stride, pad=pad)
    target = X86.DEVICES["haswell"]
    space = kernel("te.llvm.depthwise").space(workload, target)
    for config in {config["BLOCK_WO"]: config for config in space}.values():
        lowered = kernel("te.llvm.depthwise").lower(workload, config, target)
        code = tvm.compile(lowered, target=target.tvm()).mod.inspect_source("asm")
        assert len(re.findall(r"vfmadd.*%ymm", code)) > 100
        assert re.findall(r"^.*\(%rsp.*%ymm.*$", code, re.MULTILINE) == []


@pytest.mark.parametrize("device", ["haswell", "znver4"])
def test_the_peak_s_loop_loads_nothing(device: str) -> None:
    """What lies in memory would be the limit, and all shares of the peak too large."""
    target = X86.DEVICES[device]
    lowered = peak.lower(target, "float32", 1)
    code = tvm.compile(lowered, target=target.tvm()).mod.inspect_source("asm")
    multiplied = re.findall(r"^\s+vfmadd.*$", code, re.MULTILINE)
    assert len({line.split(",")[-1] for line in multiplied}) == target.cpu.vector_registers - 4
    assert [line for line in multiplied if "(" in line] == []
