"""How fast a GPU can be at most: a model, no clock.

The floor of one kernel is the longest of moving every tensor it reads or writes across memory once,
its dense multiply-adds at the rate of the units that do them, and its depthwise ones at that of the
CUDA cores. A network's is the sum over its kernels: nothing overlaps.

Source  S. Williams, A. Waterman, D. Patterson, Roofline, CACM 52(4), 2009.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kernels.workload import (
    Depthwise,
    Separable,
    Workload,
    flops,
    moved_bytes,
)
from targets.target import GpuLimits

# How the multiply-adds of a dense layer are done, float32 without a word on the CUDA cores.
MATHS = {"float16": ("f16",), "float32": ("f32", "tf32")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least that one kernel has to do, and the least time it takes."""

    moved_bytes: int
    flops: int
    memory_s: float
    compute_s: float

    @property
    def seconds(self) -> float:
        return max(self.memory_s, self.compute_s)

    @property
    def bound(self) -> str:
        return "memory" if self.memory_s >= self.compute_s else "arithmetic"


def floor(workload: Workload, gpu: GpuLimits, math: str) -> Floor:
    """Of one kernel that computes `workload`.

    math  how dense multiply-adds are done: f16 or tf32 on tensor cores, f32 on CUDA cores

    ValueError when the GPU cannot do it so.
    """
    rate = {
        "f16": gpu.tensor_f16_flops,
        "tf32": gpu.tensor_tf32_flops,
        "f32": gpu.fp32_flops,
    }[math]
    if not rate:
        raise ValueError(
            f"{gpu.arch} has no tensor cores for {math}; expected sm_80 or newer; choose f32"
        )
    parts = (
        (workload.depthwise, workload.pointwise) if isinstance(workload, Separable) else (workload,)
    )
    alone = sum(flops(part) for part in parts if isinstance(part, Depthwise))
    dense = flops(workload) - alone
    moved = moved_bytes(workload)
    return Floor(
        moved_bytes=moved,
        flops=flops(workload),
        memory_s=moved / gpu.memory_bytes_per_s,
        compute_s=max(dense / rate, alone / gpu.fp32_flops),
    )


def fused(workloads: Sequence[Workload]) -> list[Workload]:
    """A network with each depthwise layer and the pointwise one behind it in one kernel."""
    found: list[Workload] = []
    for workload in workloads:
        both = Separable.of(found[-1], workload) if found else None
        if both is None:
            found.append(workload)
        else:
            found[-1] = both
    return found
