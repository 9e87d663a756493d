"""Kernels in LLVM's own code: right at every border of arm64, and nothing spills.

`test_te` runs those for x86.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import outcomes
from test_te import images, windows

from kernels import KERNELS, kernel, kernels_for
from kernels.space import Config, blocks
from kernels.te.llvm.code import NEON, Code
from kernels.te.llvm.image import sides
from kernels.te.neon.loop import weight_steps
from kernels.workload import Conv, Depthwise, Pointwise, Workload, separables
from targets.arm64 import DEVICES
from targets.target import Target
from targets.x86 import DEVICES as X86
from tune.mobilenet import MobileNet
from tune.pipeline import Log
from tune.plan import plan
from tune.runners.estimate import EstimateRunner

A76 = DEVICES["cortex-a76"]
OURS = [name for name in KERNELS if name.startswith(("te.llvm.", "te.neon.", "te.avx."))]
DTYPES = ("float32", "float16")

HOSTILE: list[Workload] = [
    Pointwise(N=1, H=5, W=7, Ci=8, Co=24),
    Pointwise(N=3, H=5, W=7, Ci=24, Co=40, activation="none"),
    Pointwise(N=2, H=1, W=1, Ci=128, Co=100, activation="relu"),
    Pointwise(N=2, H=5, W=3, Ci=192, Co=33),
    *(
        Depthwise(N=1, Hi=9, Wi=11, C=8, stride=stride, pad=pad)
        for stride in (1, 2)
        for pad in ((1, 1, 1, 1), (0, 1, 0, 1), (2, 0, 1, 2))
    ),
    Depthwise(N=2, Hi=8, Wi=5, C=24, stride=1, pad=(0, 0, 0, 0), activation="none"),
    Depthwise(N=3, Hi=1, Wi=1, C=40, stride=2, pad=(1, 1, 1, 1), activation="relu"),
    Depthwise(N=1, Hi=9, Wi=8, C=16, K=2, stride=2, pad=(0, 1, 1, 1)),
    Conv(N=1, Hi=9, Wi=11, Ci=3, Co=24, stride=2, pad=(0, 1, 0, 1)),
    Conv(N=3, Hi=6, Wi=9, Ci=3, Co=16, stride=2, pad=(1, 0, 2, 1), activation="none"),
    Conv(N=1, Hi=7, Wi=8, Ci=3, Co=8, stride=1, pad=(1, 1, 1, 1), activation="relu"),
    Conv(N=2, Hi=7, Wi=9, Ci=4, Co=8, K=4, stride=3, pad=(0, 3, 1, 2)),
]


def ours(workload: Workload) -> str:
    """The kernel of ours that computes it."""
    [name] = [name for name in OURS if kernel(name).supports(workload, A76)]
    return name


def assembly(name: str, workload: Workload, config: Config, target: Target) -> str:
    lowered = kernel(name).lower(workload, config, target)
    code: str = tvm.compile(lowered, target=target.tvm()).mod.inspect_source("asm")
    return code


def spilt(code: str) -> list[str]:
    """Where a vector register comes back from the stack."""
    return re.findall(r"^\s+ld\w+\s+\{?\s*[qv]\d.*\[sp.*$", code, re.MULTILINE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workload", HOSTILE, ids=lambda workload: workload.key)
def test_hostile_shapes_are_right(counting: EstimateRunner, workload: Workload, dtype: str) -> None:
    """The default config, and some others drawn at random."""
    workload = replace(workload, dtype=dtype)
    name = ours(workload)
    space = kernel(name).space(workload, A76)
    others = [config for config in space if config != space.default]
    random.Random(workload.key).shuffle(others)
    for outcome in outcomes(counting, workload, name, [space.default, *others[:3]]):
        assert (outcome.error, outcome.checked) == (None, True), outcome.config


@pytest.mark.parametrize(
    "workload",
    [
        Pointwise(N=1, H=1, W=1, Ci=32, Co=32),
        Pointwise(N=1, H=7, W=7, Ci=30, Co=32),
        Pointwise(N=1, H=7, W=7, Ci=32, Co=3),
        Pointwise(N=1, H=7, W=7, Ci=200, Co=32, dtype="float16"),
        Depthwise(N=1, Hi=7, Wi=7, C=30, stride=1, pad=(1, 1, 1, 1)),
        Depthwise(N=1, Hi=7, Wi=7, C=32, K=5, stride=1, pad=(2, 2, 2, 2)),
        Conv(N=1, Hi=7, Wi=7, Ci=3, Co=30, stride=2, pad=(0, 1, 0, 1)),
        Conv(N=1, Hi=7, Wi=1, Ci=1, Co=8, stride=1, pad=(1, 1, 1, 1)),
    ],
    ids=lambda workload: workload.key,
)
def test_what_they_cannot_do_is_left_to_others(workload: Workload) -> None:
    assert [name for name in OURS if kernel(name).supports(workload, A76)] == []
    [kind] = {name.rpartition(".")[2] for name in OURS} & {type(workload).__name__.lower()}
    assert kernel(f"te.{kind}").supports(workload, A76)


sizes = st.integers(1, 40)
eights = sizes.map(lambda count: 8 * count)
shapes = st.builds(Pointwise, N=st.integers(1, 9), H=images, W=images, Ci=eights, Co=sizes)
shapes |= windows(sizes, eights)


@settings(deadline=None, derandomize=True)
@given(workload=shapes, dtype=st.sampled_from(DTYPES), device=st.sampled_from(sorted(DEVICES)))
def test_every_shape_has_configs_on_every_device(
    workload: Workload, dtype: str, device: str
) -> None:
    target, workload = DEVICES[device], replace(workload, dtype=dtype)
    for name in OURS:
        if kernel(name).supports(workload, target):
            space = kernel(name).space(workload, target)
            assert space.default in space
            assert 1 <= sum(1 for _ in islice(space, 5001)) <= 5000


@given(
    size=st.integers(1, 20),
    block=st.integers(1, 8),
    K=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_tiles_cover_an_axis_and_see_the_image(
    size: int, block: int, K: int, stride: int, pad: tuple[int, int]
) -> None:
    outputs = (size + sum(pad) - K) // stride + 1
    if outputs < 1:
        return
    tiles = sides(size, outputs, block, K=K, stride=stride, before=pad[0])
    assert sum(side.outputs for side in tiles) == outputs
    first = 0
    for side in tiles:
        start = first * stride - pad[0]
        under = range(start, start + (side.outputs - 1) * stride + K)
        seen = [pixel - start for pixel in under if 0 <= pixel < size]
        assert list(side.inside(K, stride)) == seen
        first += side.outputs


@pytest.mark.parametrize("device", ["cortex-a53", "cortex-a76", "neoverse-v1", "apple-m1"])
@pytest.mark.parametrize("pixels", [(14, 14), (28, 28)], ids=["7x8", "8x8"])
def test_a_pointwise_loop_multiplies_and_loads_groups(pixels: tuple[int, int], device: str) -> None:
    """Beside that it counts and jumps back: no address is computed, and nothing spills."""
    workload = Pointwise(N=1, H=pixels[0], W=pixels[1], Ci=256, Co=256)
    target = DEVICES[device]
    config = kernel("te.neon.pointwise").space(workload, target).default
    loop = hottest(assembly("te.neon.pointwise", workload, config, target))
    rows, steps = int(config["BLOCK_P"]), int(config["UNROLL_CI"])
    vectors = int(config["BLOCK_CO"]) // NEON.lanes(workload.dtype)
    each = weight_steps(vectors, workload.dtype)
    groups = steps // 4 * blocks(rows, NEON.group) + steps // each * blocks(
        each * vectors, NEON.group
    )
    counted = Counter(line.split()[0].removesuffix("s").replace("add", "sub") for line in loop)
    assert counted == {
        "fmla": rows * vectors * steps,
        "ld1": groups,
        "sub": 1,
        loop[-1].split()[0]: 1,
    }


def test_without_steps_the_loop_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    """What LLVM does of itself: when it does better, the steps can go."""
    workload = Pointwise(N=1, H=28, W=28, Ci=256, Co=256)
    config = kernel("te.neon.pointwise").space(workload, A76).default
    assert spilt(assembly("te.neon.pointwise", workload, config, A76)) == []
    monkeypatch.setattr(Code, "step", lambda self, pointers, sums: (list(pointers), list(sums)))
    assert len(spilt(assembly("te.neon.pointwise", workload, config, A76))) > 10


def planned(dtype: str) -> list[tuple[str, Workload, Config]]:
    """What the committed log chooses for a cortex-a76, each once."""
    choices = plan(MobileNet(dtype=dtype).layers, Log.at(None, A76).records(), A76, 1)
    return list({one.workload: (one.kernel, one.workload, one.config) for one in choices}.values())


def test_nothing_spills_of_what_the_log_chooses() -> None:
    found = [choice for choice in planned("float32") if choice[0] in OURS]
    assert Counter(name for name, _, _ in found) == {
        "te.llvm.conv": 1,
        "te.llvm.depthwise": 9,
        "te.neon.pointwise": 9,
    }
    for name, workload, config in found:
        assert spilt(assembly(name, workload, config, A76)) == [], (workload.key, config)


@pytest.mark.parametrize("device", ["znver4", "x86-64-v3"])
def test_nothing_spills_on_x86(device: str) -> None:
    """But for a few where there are 16 registers, and a vector of arguments that are handed on.

    Between the loops of Strassen's products sums may wait; `test_te.py` looks at the loops.
    """
    target, checked = X86[device], 0
    workloads = [layer.workload for layer in MobileNet().layers]
    for workload in {*workloads, *separables(workloads)}:
        for name in kernels_for(workload, target):
            if name in OURS and not name.endswith("_strassen"):
                config = kernel(name).space(workload, target).default
                code = assembly(name, workload, config, target)
                stacked = re.findall(r"^\s+v\w+\s(?=.*[yz]mm).*\(%rsp\).*$", code, re.MULTILINE)
                allowed = 1 if target.cpu.vector_registers > 16 else code.count("vfmadd") / 50
                assert len(stacked) <= allowed, (workload.key, config, stacked)
                checked += 1
    assert checked == 28


def hottest(code: str) -> list[str]:
    """The instructions of the loop that multiplies most, its jump back last."""
    pattern = r"^(\.L\w+):[^\n]*\n((?:(?!^\.L\w+:).*\n)*?\s+b\.\w+\s+\1)$"
    body = max(
        (match[2] for match in re.finditer(pattern, code, re.MULTILINE)),
        key=lambda text: text.count("fmla"),
    )
    lines = (line.partition("//")[0].strip() for line in body.splitlines())
    return [line for line in lines if line and not line.startswith(".")]
