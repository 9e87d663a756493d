"""Triton's compiler without a GPU or a driver: a launch in, its machine code out.

Facts that Triton finds out about the arguments of a launch are given here: every pointer is a
multiple of 16 bytes, without which there are no wide loads. Triton puts two pointers to scratch
memory of its own behind a function's parameters; our kernels use neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.space import blocks
from kernels.triton.call import Call, Launch
from kernels.triton.resources import resources
from targets.target import GpuLimits, Target

POINTERS = {"float32": "*fp32", "float16": "*fp16"}
WARP = 32
DEPENDENT_SINCE = 90  # architecture
ALIGNED = (("tt.divisibility", 16),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """A launch compiled for one architecture: all that a driver needs to know.

    name          of the function in the cubin
    tensors       what its pointers point to; two more that are null come behind them
    shared_bytes  of dynamic shared memory
    registers     of a thread
    frame_bytes   of memory of a thread's own, where it spills what its registers do not hold
    dependent     whether it may be launched ahead of the end of the one before, for which it waits
    ir            the first form that the compiler gave it, in which blocks still are blocks
    """

    name: str
    cubin: bytes
    arch: str
    tensors: tuple[str, ...]
    programs: int
    threads: int
    shared_bytes: int
    registers: int
    frame_bytes: int
    dependent: bool
    ir: str


def compile_call(call: Call, target: Target) -> tuple[Binary, ...]:
    """The machine code of each launch.

    ValueError when one needs more shared memory than a block of the target can have. What Triton
    raises passes through: to the tuner, a candidate that does not compile is a result.
    """
    return tuple(_compiled(launch, call.dtypes, target) for launch in call.launches)


def _compiled(launch: Launch, dtypes: Mapping[str, str], target: Target) -> Binary:
    gpu, threads = target.gpu, WARP * launch.num_warps
    each = blocks(launch.programs, gpu.sms)  # of an SM, where all run at once
    most, share = (
        min(gpu.registers_per_thread, gpu.registers_per_sm // (threads * count) // 8 * 8)
        for count in (launch.resident, each)
    )
    # Left to itself ptxas saves registers, at times by spilling some, to make room for more blocks
    # on an SM. Where there are none, more loads under way are worth more; and spills never are.
    made = _made(launch, dtypes, gpu, most if each == 1 else None)
    if each > 1:
        used = resources(made.asm["cubin"])
        if used.registers < share and threads * each <= gpu.threads_per_sm:
            made = _made(launch, dtypes, gpu, share)
        elif used.frame_bytes:
            made = _made(launch, dtypes, gpu, most)
    allowed = gpu.shared_per_block_bytes
    if made.metadata.shared > allowed:
        raise ValueError(
            f"{launch.kernel.__name__} asks for {made.metadata.shared} bytes of shared memory; "
            f"expected at most {allowed} on {gpu.arch}; take smaller blocks or fewer stages"
        )
    used = resources(made.asm["cubin"])
    return Binary(
        name=made.metadata.name,
        cubin=made.asm["cubin"],
        arch=gpu.arch,
        tensors=launch.tensors,
        programs=launch.programs,
        # Not launch.num_warps: what Triton adds for itself counts, too.
        threads=WARP * made.metadata.num_warps,
        shared_bytes=made.metadata.shared,
        registers=used.registers,
        frame_bytes=used.frame_bytes,
        dependent=_dependent(gpu),
        ir=made.asm["ttir"],
    )


def _made(launch: Launch, dtypes: Mapping[str, str], gpu: GpuLimits, registers: int | None) -> Any:
    """What Triton compiles, for threads that have at most so many registers."""
    return triton.compile(
        source(launch, dtypes, _dependent(gpu)),
        target=GPUTarget("cuda", gpu.capability, WARP),
        options={
            "num_warps": launch.num_warps,
            "num_stages": launch.num_stages,
            "maxnreg": registers,
        },
    )


def source(launch: Launch, dtypes: Mapping[str, str], dependent: bool = False) -> ASTSource:
    """The function under the launch's own name, because one library holds many.

    dependent  whether it waits for the launch before, see tile.await_previous
    """
    name = launch.name(dtypes)
    named = triton.jit(launch.kernel.fn, repr=lambda _: name)
    pointers = dict(zip(named.arg_names, launch.tensors, strict=False))
    return ASTSource(
        fn=named,
        signature={
            parameter: POINTERS[dtypes[pointers[parameter]]]
            if parameter in pointers
            else "constexpr"
            for parameter in named.arg_names
        },
        constexprs={**launch.constants, "DEPENDENT": dependent},
        attrs={(index,): [list(fact) for fact in ALIGNED] for index in range(len(pointers))},
    )


def _dependent(gpu: GpuLimits) -> bool:
    return gpu.capability >= DEPENDENT_SINCE
