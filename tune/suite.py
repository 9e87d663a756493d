"""What has to be right on a GPU before anything is timed there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from kernels import kernel, kernels_for
from kernels.space import Config
from kernels.workload import (
    DTYPES,
    Conv,
    Depthwise,
    Head,
    Pointwise,
    Separable,
    Workload,
    separables,
)
from targets.target import Target
from tune.mobilenet import MobileNet
from tune.runners.protocol import Entry

# Sizes that no tile divides, uneven padding, single pixels and channels, several images.
HOSTILE: tuple[Workload, ...] = (
    Conv(N=1, Hi=33, Wi=35, Ci=3, Co=24, stride=2, pad=(0, 1, 0, 1)),
    Conv(N=3, Hi=6, Wi=21, Ci=3, Co=40, stride=1, pad=(1, 0, 2, 1)),
    Depthwise(N=1, Hi=15, Wi=13, C=72, stride=1, pad=(1, 1, 1, 1)),
    Depthwise(N=3, Hi=9, Wi=6, C=40, stride=2, pad=(0, 1, 0, 1)),
    Depthwise(N=1, Hi=1, Wi=1, C=1, stride=1, pad=(1, 1, 1, 1)),
    Pointwise(N=1, H=11, W=13, Ci=72, Co=40),
    Pointwise(N=6, H=7, W=7, Ci=264, Co=136),
    Pointwise(N=1, H=1, W=1, Ci=1, Co=1),
    Separable(N=1, Hi=15, Wi=13, C=72, Co=40, stride=1, pad=(1, 1, 1, 1)),
    Separable(N=3, Hi=9, Wi=6, C=40, Co=33, stride=2, pad=(0, 1, 0, 1)),
    Head(N=1, H=7, W=7, Ci=72, Co=33),
    Head(N=6, H=2, W=3, Ci=40, Co=101),
)


def entries(target: Target) -> tuple[Entry, ...]:
    """Every kernel for `target`: all hostile shapes with some configs each, and the default ones
    of all that the network consists of, for one image and for seven.
    """
    found: list[Entry] = []
    for dtype in DTYPES:
        for shape in HOSTILE:
            workload = replace(shape, dtype=dtype)
            for name in kernels_for(workload, target):
                found += (
                    Entry(workload=workload, kernel=name, config=config)
                    for config in _some(name, workload, target)
                )
        for batch in (1, 7):
            for workload in dict.fromkeys(_layers(MobileNet(batch=batch, dtype=dtype))):
                for name in kernels_for(workload, target):
                    default = kernel(name).space(workload, target).default
                    found.append(Entry(workload=workload, kernel=name, config=default))
    return tuple(found)


def _layers(model: MobileNet) -> Iterator[Workload]:
    """Each layer alone, and each depthwise one with the pointwise one behind it."""
    workloads = [layer.workload for layer in model.layers]
    yield from workloads
    yield from separables(workloads)


def _some(name: str, workload: Workload, target: Target) -> list[Config]:
    """The default, the first, the last and two others, the same at every call."""
    space = kernel(name).space(workload, target)
    configs = list(space)
    picked = [space.default, configs[0], configs[-1]]
    picked += random.Random(workload.key).sample(configs, min(2, len(configs)))
    return [config for number, config in enumerate(picked) if config not in picked[:number]]
