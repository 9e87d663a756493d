"""The best kernel and config for every layer, from records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kernels import kernel, kernels_for
from kernels.space import Config
from kernels.version import version
from targets.target import Target
from tune.database import ESTIMATORS, Record, best
from tune.errors import GateError
from tune.mobilenet import Layer
from tune.transfer import similar


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How one layer is computed, and why so.

    why     measured     the fastest on this device with so many threads
            estimated    thought the fastest on this device, which did not measure
            transferred  won on another device, thread count or shape, and was carried over
            default      nothing of the kind was ever measured
    time_s  seconds as recorded, None unless measured or estimated
    record  where the config comes from, None for a default
    """

    layer: Layer
    kernel: str
    config: Config
    why: str
    time_s: float | None = None
    record: Record | None = None


def plan(
    layers: Sequence[Layer], records: Sequence[Record], target: Target, threads: int
) -> tuple[Choice, ...]:
    """One choice a layer, in their order. GateError when no kernel can compute a layer."""
    chosen: dict[str, Choice] = {}
    for layer in layers:
        key = layer.workload.key
        if key not in chosen:
            chosen[key] = _choose(layer, records, target, threads)
    return tuple(
        Choice(
            layer=layer,
            kernel=choice.kernel,
            config=choice.config,
            why=choice.why,
            time_s=choice.time_s,
            record=choice.record,
        )
        for layer, choice in ((layer, chosen[layer.workload.key]) for layer in layers)
    )


def _choose(layer: Layer, records: Sequence[Record], target: Target, threads: int) -> Choice:
    workload = layer.workload
    names = kernels_for(workload, target)
    if not names:
        raise GateError(
            f"layer {layer.name} ({workload.key}): no kernel computes it on {target.kind}; "
            f"expected one that supports it; see kernels/__init__.py for what there is"
        )
    versions = {name: version(name, target.kind, workload.dtype) for name in names}
    for why, estimator in (("measured", None), *(("estimated", name) for name in ESTIMATORS)):
        winner = best(
            records,
            workload=workload.key,
            target=target.kind,
            device=target.device,
            threads=threads if estimator is None else 1,
            versions=versions,
            estimator=estimator,
        )
        if winner is not None and winner.config in kernel(winner.kernel).space(workload, target):
            return Choice(
                layer=layer,
                kernel=winner.kernel,
                config=winner.config,
                why=why,
                time_s=winner.time_s,
                record=winner,
            )
    for name in names:
        space = kernel(name).space(workload, target)
        near = similar(records, workload, name, space, target=target, threads=threads, limit=1)
        if near:
            config, record = near[0]
            return Choice(layer=layer, kernel=name, config=config, why="transferred", record=record)
    space = kernel(names[0]).space(workload, target)
    return Choice(layer=layer, kernel=names[0], config=space.default, why="default")
