"""A kernel's version: what it lowers to at fixed probes, so that a comment does not age a log."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from kernels import kernel, kernels_for
from kernels.reference import Array
from kernels.space import Config
from kernels.tolerance import HALF_TERMS
from kernels.workload import Conv, Depthwise, Head, Pointwise, Separable, Workload
from targets import machines
from targets.target import Target

# One workload of each kind, with sizes that leave part of a last tile empty.
PROBES: tuple[Workload, ...] = (
    Conv(N=1, Hi=18, Wi=19, Ci=3, Co=24, stride=2, pad=(0, 1, 0, 1)),
    Depthwise(N=1, Hi=9, Wi=11, C=24, stride=1, pad=(1, 1, 1, 1)),
    Pointwise(N=1, H=9, W=11, Ci=64, Co=40),
    Head(N=1, H=3, W=3, Ci=24, Co=10),
    Separable(N=1, Hi=9, Wi=11, C=24, Co=40, stride=1, pad=(1, 1, 1, 1)),
)
# Long enough for a float16 sum to be taken in parts.
LONG: tuple[Workload, ...] = (
    Pointwise(N=1, H=9, W=11, Ci=2 * HALF_TERMS, Co=40),
    Separable(N=1, Hi=9, Wi=11, C=2 * HALF_TERMS, Co=40, stride=1, pad=(1, 1, 1, 1)),
)
PROBE_DEVICES = {"x86": "x86-64-v3", "arm64": "cortex-a76", "cuda": "sm_90"}
# Where vectors are wider, and enough for all that a kernel would hold, its code is another one.
WIDE_DEVICES = {"x86": "x86-64-v4"}
TILE_DEVICES = {"x86": "sapphirerapids"}
WIDE: tuple[Workload, ...] = (
    Conv(N=1, Hi=18, Wi=19, Ci=3, Co=48, stride=2, pad=(0, 1, 0, 1)),
    Depthwise(N=1, Hi=9, Wi=11, C=48, stride=1, pad=(1, 1, 1, 1)),
    Pointwise(N=1, H=9, W=11, Ci=64, Co=80),
    Separable(N=1, Hi=9, Wi=11, C=48, Co=80, stride=1, pad=(1, 1, 1, 1)),
)
# Whose halves and quarters are whole vectors, too.
HALVES: tuple[Workload, ...] = (
    Pointwise(N=1, H=9, W=11, Ci=64, Co=192),
    Separable(N=1, Hi=9, Wi=11, C=64, Co=192, stride=1, pad=(1, 1, 1, 1)),
)
# Whose channels are whole rows of tile registers.
TILES: tuple[Workload, ...] = (
    Pointwise(N=1, H=9, W=11, Ci=64, Co=80),
    Separable(N=1, Hi=9, Wi=11, C=64, Co=80, stride=1, pad=(1, 1, 1, 1)),
)


@cache
def version(name: str, kind: str, dtype: str) -> str:
    """Twelve hex digits that change when the kernel lowers or packs its probes in another way.

    kind, dtype  of machine and of probes; a schedule for one may change without that for another

    The first, middle and last config of each probe's space are lowered, for a device of their own,
    so that the version is the same on every machine; of a Triton kernel the source counts, and what
    it is given, not what a compiler makes of it.
    """
    probes = [(PROBE_DEVICES[kind], probe) for probe in PROBES + LONG * (dtype == "float16")]
    if name.startswith(("te.llvm.", "te.avx.")) and kind in WIDE_DEVICES:
        probes += [(WIDE_DEVICES[kind], probe) for probe in WIDE]
    if name.endswith("_strassen"):
        devices = (found[kind] for found in (PROBE_DEVICES, WIDE_DEVICES) if kind in found)
        probes = [(device, probe) for device in devices for probe in HALVES]
    if name.startswith("te.amx.") and kind in TILE_DEVICES:
        probes = [(TILE_DEVICES[kind], probe) for probe in TILES]
    digest = hashlib.sha256()
    for device, workload in probes:
        target, probe = machines(kind).DEVICES[device], replace(workload, dtype=dtype)
        if name in kernels_for(probe, target):
            configs = list(kernel(name).space(probe, target))
            for config in (configs[0], configs[len(configs) // 2], configs[-1]):
                digest.update(_form(name, probe, config, target).encode())
                for packed in kernel(name).pack(probe, config, _counted(probe)):
                    digest.update(packed.tobytes())
    return digest.hexdigest()[:12]


def _form(name: str, probe: Workload, config: Config, target: Target) -> str:
    """What the kernel generates, as text."""
    module: Any = kernel(name)
    if hasattr(module, "call"):
        form: str = module.call(probe, config, target).form
    else:
        form = module.lower(probe, config, target)["main"].script()
    return form


def _counted(probe: Workload) -> tuple[Array, ...]:
    """Weights whose values tell where each went; a bias counts first, then its filter."""
    counted: list[Array] = []
    first = 0
    for filter_shape, bias_shape in zip(*[iter(probe.weight_shapes)] * 2, strict=True):
        count = prod(filter_shape) + prod(bias_shape)
        values = np.arange(first, first + count, dtype=np.float32)
        bias, wt = np.split(values, [prod(bias_shape)])
        counted += [wt.reshape(filter_shape).astype(probe.dtype), bias]
        first += count
    return tuple(counted)
