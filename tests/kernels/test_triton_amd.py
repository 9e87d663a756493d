"""Triton kernels compiled for an AMD GPU, gfx942: that nothing in them is NVIDIA's alone.

Nothing else of the project knows such a card, and none has run them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

import pytest
import triton
from test_triton_aot import LAYERS
from triton.backends.compiler import GPUTarget

from kernels import kernel
from kernels.space import Config
from kernels.triton.aot import source
from kernels.triton.call import Launch
from kernels.workload import Conv, Pointwise, Separable, Workload
from targets import machines

GFX942 = GPUTarget("hip", "gfx942", 64)
SHARED_BYTES = 64 << 10
STAGES = 2  # of what a loop has under way; shared memory is a fourth of a H100's
CONFIGURED_FOR = machines("cuda").DEVICES["sm_90"]
SMALLER: dict[str, Config] = {"triton.separable_swapped": {"BLOCK_C": 128}}  # steps


@dataclass(frozen=True)
class Code:
    """What of a launch's assembly code tells how well it was compiled."""

    products: int
    wide_loads: int
    scratch_bytes: int
    shared_bytes: int


@cache
def compiled(name: str, workload: Workload) -> tuple[Code, ...]:
    """The default's launches. Of Triton's ways to multiply in float32 the backend has no tf32x3."""
    space = kernel(name).space(workload, CONFIGURED_FOR)
    config = space.nearest(space.default | SMALLER.get(name, {}))
    call = kernel(name).call(workload, config, CONFIGURED_FOR)  # type: ignore[attr-defined]
    return tuple(code_of(launch, call.dtypes) for launch in call.launches)


def code_of(launch: Launch, dtypes: dict[str, str]) -> Code:
    if "PRECISION" in launch.constants:
        launch = replace(launch, constants={**launch.constants, "PRECISION": "ieee"})
    options = {"num_warps": launch.num_warps, "num_stages": min(launch.num_stages, STAGES)}
    made = triton.compile(source(launch, dtypes), target=GFX942, options=options)
    text = made.asm["amdgcn"]
    [scratch] = re.findall(r"; ScratchSize: (\d+)", text)
    return Code(
        products=text.count("v_mfma_"),
        wide_loads=len(re.findall(r"(?:global|buffer)_load_dwordx4", text)),
        scratch_bytes=int(scratch),
        shared_bytes=made.metadata.shared,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_default_configs_compile_to_what_the_card_is_for(layer: str, dtype: str) -> None:
    workload = replace(LAYERS[layer], dtype=dtype)
    codes = compiled(f"triton.{layer.partition(',')[0]}", workload)
    assert any(code.wide_loads for code in codes)
    for code in codes:
        assert code.scratch_bytes == 0
        assert code.shared_bytes <= SHARED_BYTES
        if isinstance(workload, Conv | Pointwise | Separable):
            assert code.products > 0
