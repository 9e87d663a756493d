"""Records in, and why each layer is computed as it is."""

from __future__ import annotations

from typing import Any

from kernels import kernel
from kernels.workload import Separable, Workload, flops
from targets.target import Target
from tune import mca
from tune.builder import prepare
from tune.mobilenet import MobileNet
from tune.pins import check_pins
from tune.pipeline.records import Log
from tune.plan import Choice, plan


def explain(
    model: MobileNet, target: Target, log: Log, *, threads: int, code: bool
) -> list[dict[str, Any]]:
    """One row a choice of the plan: what computes it, why, how fast, and what else was known.

    code  also build each kernel and say what its code asks of the machine; for a CPU the hottest
          loop by llvm-mca, for a GPU the launches. SetupError without the tool.
    """
    check_pins()
    read = None
    if code:
        prepare(target)
        read = READERS[target.kind]
    found: dict[Workload, str] = {}
    rows = []
    for choice in plan(model.layers, log.records(), target, threads):
        if read is not None and choice.workload not in found:
            found[choice.workload] = read(choice, target)
        rows.append(
            {
                "name": choice.name,
                "workload": choice.workload.key,
                "kernel": choice.kernel,
                "config": choice.config,
                "why": choice.why,
                "estimator": choice.record and choice.record.estimator,
                "time_s": choice.time_s,
                "flops": flops(choice.workload),
                "peak_flops": choice.record and choice.record.peak_flops,
                "apart_s": choice.apart_s,
                "fused_s": choice.fused_s,
                "code": found.get(choice.workload),
            }
        )
    return rows


def _hot_loops(choice: Choice, target: Target) -> str:
    """What the hottest loops consist of, and how near the model's multiply-add throughput.

    Of a layer that only multiplies matrices, or only sums windows, these; of two in one, both.
    """
    import tvm

    lowered = kernel(choice.kernel).lower(choice.workload, choice.config, target)
    assembly = tvm.compile(lowered, target=target.tvm()).mod.inspect_source("asm")
    loops = mca.hot_loops(assembly, target)
    if not isinstance(choice.workload, Separable):
        loops = (max(loops, key=lambda loop: loop.multiply_adds),)
    return "; ".join(map(_described, loops))


def _described(loop: mca.Loop) -> str:
    if loop.tile_products:
        return f"{loop.tile_products} products of tiles of {loop.instructions} instructions"
    return (
        f"{loop.multiply_adds} multiply-adds of {loop.instructions} instructions in "
        f"{loop.cycles:.0f} cycles, {loop.share:.0%} of what the model of {loop.core} can start"
    )


def _launches(choice: Choice, target: Target) -> str:
    """The functions that the library launches, and what each asks of a multiprocessor."""
    from tune.launches import launches

    return "; ".join(
        f"{one.facts.name}, {one.blocks} blocks of {one.threads} threads, "
        f"{one.facts.registers} registers, {one.facts.local_bytes} bytes spilt, "
        f"{one.shared_bytes} of shared memory"
        for one in launches(choice.workload, choice.kernel, choice.config, target)
    )


# Kind of machine -> what tells of a choice's code.
READERS = {"arm64": _hot_loops, "x86": _hot_loops, "cuda": _launches}
