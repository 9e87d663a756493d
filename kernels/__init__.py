"""What is computed, and how it may be arranged.

A kernel is one way to compute a kind of workload: a module with four functions.

    supports(workload, target) -> bool
    space(workload, target) -> Space
    lower(workload, config, target) -> IRModule
        one scheduled function `main(x, *weights, y)`; x and y hold the workload's elements in its
        order, under a shape of the kernel's choice
    pack(workload, config, weights) -> weights
        from the canonical layouts, filters in the workload's dtype and biases in float32, to the
        layouts and dtypes that this config wants

One that computes with fewer operations than the workload's sums have says with how many:

    flops(workload) -> int
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kernels.reference import Array
    from kernels.space import Config, Space
    from kernels.workload import Workload
    from targets.target import Target

# Name in logs -> module, loaded on first use; of several for a workload the first is the default.
KERNELS = {
    "te.llvm.conv": "kernels.te.llvm.conv",
    "te.llvm.depthwise": "kernels.te.llvm.depthwise",
    "te.avx.pointwise": "kernels.te.avx.pointwise",
    "te.amx.pointwise": "kernels.te.amx.pointwise",
    "te.avx.pointwise_strassen": "kernels.te.avx.pointwise_strassen",
    "te.neon.pointwise": "kernels.te.neon.pointwise",
    "te.conv": "kernels.te.conv",
    "te.depthwise": "kernels.te.depthwise",
    "te.pointwise": "kernels.te.pointwise",
    "te.head": "kernels.te.head",
    "te.avx.separable": "kernels.te.avx.separable",
    "te.amx.separable": "kernels.te.amx.separable",
    "te.avx.separable_strassen": "kernels.te.avx.separable_strassen",
    "te.separable": "kernels.te.separable",
    "triton.depthwise": "kernels.triton.depthwise",
    "triton.head": "kernels.triton.head",
    "triton.pointwise": "kernels.triton.pointwise",
    "triton.separable": "kernels.triton.separable",
    "triton.separable_swapped": "kernels.triton.separable_swapped",
    "triton.stem": "kernels.triton.stem",
    "te.cuda.conv": "kernels.te.cuda.conv",
    "te.cuda.depthwise": "kernels.te.cuda.depthwise",
    "te.cuda.pointwise": "kernels.te.cuda.pointwise",
    "te.cuda.pointwise_wmma": "kernels.te.cuda.pointwise_wmma",
    "te.cuda.separable": "kernels.te.cuda.separable",
    "te.cuda.head": "kernels.te.cuda.head",
}
CPUS = ("x86", "arm64")
# A name without its last part -> the kinds of machine that such kernels are for. Others load no
# module of theirs, and need not have installed what that imports.
KINDS = {
    "te": CPUS,
    "te.llvm": CPUS,
    "te.avx": ("x86",),
    "te.amx": ("x86",),
    "te.neon": ("arm64",),
    "te.cuda": ("cuda",),
    "triton": ("cuda",),
}


class Kernel(Protocol):
    """What a kernel's module offers."""

    def supports(self, workload: Workload, target: Target) -> bool: ...
    def space(self, workload: Workload, target: Target) -> Space: ...
    def lower(self, workload: Workload, config: Config, target: Target) -> Any: ...
    def pack(
        self, workload: Workload, config: Config, weights: tuple[Array, ...]
    ) -> tuple[Array, ...]: ...


def kernel(name: str) -> Kernel:
    """The kernel of that name. ValueError when there is none."""
    if name not in KERNELS:
        raise ValueError(
            f"kernel {name!r} is not known; expected one of {', '.join(KERNELS)}; "
            f"a new kernel is a new file and a line in kernels/__init__.py"
        )
    module: Any = import_module(KERNELS[name])
    return module  # type: ignore[no-any-return]


def least_flops(name: str, workload: Workload) -> int:
    """Operations without which the kernel cannot compute `workload`; a multiply-add is two."""
    from kernels.workload import flops

    fewer: Any = getattr(kernel(name), "flops", flops)
    return fewer(workload)  # type: ignore[no-any-return]


def kernels_for(workload: Workload, target: Target) -> tuple[str, ...]:
    """Names of the kernels that can compute `workload` on `target`."""
    near = (name for name in KERNELS if target.kind in KINDS[name.rpartition(".")[0]])
    return tuple(name for name in near if kernel(name).supports(workload, target))
