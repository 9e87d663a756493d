"""A GPU kernel's launches, compiled for a target and counted, from either kind of kernel.

Runs in a worker: compilers may crash.
"""

from __future__ import annotations

from typing import Any

from kernels import kernel
from kernels.space import Config
from kernels.workload import Workload
from targets.cuda_toolkit import compiling
from targets.target import Target
from tune import tir, ttir
from tune.chain import chain
from tune.cubin import KernelFacts, inspect
from tune.prediction import Launched, Work


def launches(workload: Workload, name: str, config: Config, target: Target) -> tuple[Launched, ...]:
    """What computes `workload` with `config`, launch by launch.

    What a compiler raises passes through: to the tuner, a candidate that does not compile is a
    result.
    """
    module: Any = kernel(name)
    if hasattr(module, "call"):
        return _of_triton(module, workload, config, target)
    return _of_tvm(module.lower(workload, config, target), target)


def _of_triton(
    module: Any, workload: Workload, config: Config, target: Target
) -> tuple[Launched, ...]:
    from kernels.triton.aot import compile_call

    return tuple(
        _launched(
            inspect(binary.cubin).kernel(binary.name),
            blocks=binary.programs,
            threads=binary.threads,
            shared_bytes=binary.shared_bytes,
            work=ttir.work(binary.ir, binary.programs),
        )
        for binary in compile_call(module.call(workload, config, target), target)
    )


def _of_tvm(scheduled: Any, target: Target) -> tuple[Launched, ...]:
    from tvm import tirx
    from tvm.tirx.build import codegen_build, split_host_device_mods

    found: list[Launched] = []
    with compiling(target), _Images() as images:
        machine = target.tvm()
        lowering, _, finish = tirx.get_default_tir_pipeline(machine)
        lowered = lowering(tirx.transform.BindTarget(machine)(scheduled))
        _, by_target = split_host_device_mods(lowered)
        for made_for, device in by_target.items():
            device = finish()(device)
            codegen_build(device, made_for)
            facts = inspect(images.pop())
            found += [
                _launched(
                    facts.kernel(each.name),
                    blocks=each.blocks,
                    threads=each.threads,
                    shared_bytes=each.shared_bytes,
                    work=each.work,
                )
                for each in tir.scheduled(device.script())
            ]
    return tuple(found)


def _launched(
    facts: KernelFacts, *, blocks: int, threads: int, shared_bytes: int, work: Work
) -> Launched:
    return Launched(
        facts=facts,
        blocks=blocks,
        threads=threads,
        shared_bytes=facts.shared_bytes + shared_bytes,
        work=work,
        chain=chain(
            facts.code,
            threads,
            loaded_bytes=work.loaded_bytes / blocks,
            stored_bytes=work.stored_bytes / blocks,
            tensor_flops=work.tensor_flops / blocks,
        ),
    )


class _Images:
    """Takes the cubins that TVM has compiled meanwhile; TVM itself does not give them out."""

    CALLBACK = "tvm_callback_cuda_compile"

    def __enter__(self) -> list[bytes]:
        from tvm.support import nvcc
        from tvm_ffi import get_global_func, register_global_func

        self._before = get_global_func(self.CALLBACK)
        images: list[bytes] = []

        def compiled(code: str) -> bytes:
            images.append(nvcc.compile_cuda(code, target_format="cubin", compiler="nvcc"))
            return images[-1]

        register_global_func(self.CALLBACK, compiled, override=True)
        return images

    def __exit__(self, *_: object) -> None:
        from tvm_ffi import register_global_func

        register_global_func(self.CALLBACK, self._before, override=True)
