"""The best kernel and config for every layer, from records alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kernels import CPUS, kernel, kernels_for
from kernels.space import Config
from kernels.te.tasks import EVEN, shared, unevenness
from kernels.version import version
from kernels.workload import Separable, Workload, parse
from targets import machines
from targets.target import Target
from tune.database import ESTIMATORS, Record, best
from tune.errors import GateError
from tune.mobilenet import Layer
from tune.transfer import Known

# Of the two layers' time apart. Those within 3 % of it that a run on two threads chose for seven
# blocks made the network 2 % slower, the two beyond it 7 to 15 % faster while the cores were slow
# to read what the other wrote, and 1 % else (znver4, 2026-11-25, 25 to 40 interleaved rounds).
FASTER = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How one layer is computed, or a depthwise one and its pointwise one together, and why so.

    why      measured     the fastest on this device with so many threads
             sibling      the fastest on another GPU of the same architecture
             estimated    thought the fastest on this device, which did not measure
             transferred  won on another device, thread count or shape, and was carried over
             default      nothing of the kind was ever measured
    time_s   seconds as recorded, None unless measured or estimated for this device
    record   where the config comes from, None for a default
    apart_s  where two layers are known together and apart: seconds apart
    fused_s  and together
    """

    layers: tuple[Layer, ...]
    kernel: str
    config: Config
    why: str
    time_s: float | None = None
    record: Record | None = None
    apart_s: float | None = None
    fused_s: float | None = None

    @property
    def workload(self) -> Workload:
        first, *others = (layer.workload for layer in self.layers)
        workload = Separable.of(first, *others) if others else first
        assert workload is not None, "only what can be fused is chosen together"
        return workload

    @property
    def name(self) -> str:
        """The layer's; of two, the block's."""
        first, *others = self.layers
        return first.name.partition(".")[0] if others else first.name


def plan(
    layers: Sequence[Layer],
    records: Sequence[Record],
    target: Target,
    threads: int,
    *,
    fuse: bool = True,
) -> tuple[Choice, ...]:
    """What computes all layers, in their order. GateError when no kernel can compute one.

    fuse  whether two layers may be one choice, as they are where a record says that it is faster
    """
    known = Known(records=records, target=target, threads=threads)
    single: dict[Workload, Choice] = {}
    for layer in layers:
        if layer.workload not in single:
            single[layer.workload] = _choose((layer,), layer.workload, known)
    apart = [replace(single[layer.workload], layers=(layer,)) for layer in layers]
    choices: list[Choice] = []
    while apart:
        pair, together = apart[:2], None
        if fuse and len(pair) == 2:
            together = _together(pair, known)
        if together is None:
            choices.append(pair[0])
        elif together.fused_s is None or together.fused_s < FASTER * (together.apart_s or 0):
            choices.append(together)
            del apart[0]
        else:
            apart_s, fused_s = together.apart_s, together.fused_s
            choices += (replace(choice, apart_s=apart_s, fused_s=fused_s) for choice in pair)
            del apart[0]
        del apart[0]
    return tuple(choices)


def _choose(layers: tuple[Layer, ...], workload: Workload, known: Known) -> Choice:
    """The best that is known of the workload, be it one layer or two in one."""
    target = known.target
    names = kernels_for(workload, target)
    if not names:
        raise GateError(
            f"layer {layers[0].name} ({workload.key}): no kernel computes it on {target.device}; "
            f"expected one that supports it; see kernels/__init__.py for what there is"
        )
    for why, device, estimator in _sources(target):
        found = winner(workload, known.records, target, known.threads, estimator, device)
        if found is not None:
            return _decided(layers, why, found)
    for name, standing in known.standings(workload).items():
        record, space = standing.record, kernel(name).space(workload, target)
        config = space.nearest(record.config)
        if target.kind in CPUS and record.threads < known.threads:
            config = shared(workload, config, space, known.threads)
        return Choice(layers=layers, kernel=name, config=config, why="transferred", record=record)
    space = kernel(names[0]).space(workload, target)
    return Choice(layers=layers, kernel=names[0], config=space.default, why="default")


def _together(pair: Sequence[Choice], known: Known) -> Choice | None:
    """The two as one choice, with the times of both ways, where both are known the same way.

    Where one of the two is carried over, there are no such times: then they are one where they were
    faster so at the place that the record of the two in one comes from.
    """
    target, threads = known.target, known.threads
    workload = Separable.of(*(choice.workload for choice in pair))
    if workload is None or not kernels_for(workload, target):
        return None
    layers = tuple(layer for choice in pair for layer in choice.layers)
    if any(choice.why == "transferred" for choice in pair):
        together = _choose(layers, workload, known)
        return together if _was_faster(together, pair[1], known) else None
    sources = {(c.why, c.record.device, c.record.estimator) if c.record else None for c in pair}
    if len(sources) > 1 or sources.isdisjoint(_sources(target)):
        return None
    [(why, device, estimator)] = filter(None, sources)
    found = winner(workload, known.records, target, threads, estimator, device)
    apart_s = None if found is None else _apart_s(found, known)
    if found is None or apart_s is None:
        return None
    return replace(_decided(layers, why, found), apart_s=apart_s, fused_s=found.time_s)


def _was_faster(together: Choice, pointwise: Choice, known: Known) -> bool:
    """Whether the two in one were faster where their record comes from.

    That has to be the device of the pointwise layer's record, or it would be compared with another
    kernel than the one that computes the layer; and so many threads have to share its tasks evenly.
    """
    there, apart = together.record, pointwise.record
    if there is None or apart is None:
        return False
    if (there.device, there.estimator) != (apart.device, apart.estimator):
        return False
    elsewhere = known.target.kind in CPUS and there.threads != known.threads
    if elsewhere and unevenness(together.workload, together.config, known.threads) > EVEN:
        return False
    apart_s = _apart_s(there, known)
    return apart_s is not None and (there.time_s or math.inf) < FASTER * apart_s


def _apart_s(together: Record, known: Known) -> float | None:
    """Seconds of two layers apart at the place of a record of both in one, where that is known."""
    if together.apart_s is not None:
        return together.apart_s
    workload = parse(together.workload)
    assert isinstance(workload, Separable), "only such a record is asked for"
    # alone and in the network a kernel takes different times
    alike = [record for record in known.records if record.stage == together.stage]
    place = together.threads, together.estimator, together.device
    layers = workload.depthwise, workload.pointwise
    parts = [winner(layer, alike, known.target, *place) for layer in layers]
    return sum(part.time_s or 0 for part in parts if part) if all(parts) else None


def _decided(layers: tuple[Layer, ...], why: str, record: Record) -> Choice:
    """What `record` says of them."""
    return Choice(
        layers=layers,
        kernel=record.kernel,
        config=record.config,
        why=why,
        time_s=None if why == "sibling" else record.time_s,
        record=record,
    )


def _sources(target: Target) -> list[tuple[str, str, str | None]]:
    """Why records decide, of which device and by whose estimate, the better ones first."""
    alike = [] if target.kind in CPUS else sorted(machines(target.kind).siblings(target))
    return [
        ("measured", target.device, None),
        *(("sibling", device, None) for device in alike),
        *(("estimated", target.device, name) for name in ESTIMATORS),
    ]


def winner(
    workload: Workload,
    records: Sequence[Record],
    target: Target,
    threads: int,
    estimator: str | None,
    device: str | None = None,
) -> Record | None:
    """The best record of any kernel, as measured or as `estimator` thinks.

    device  where, when that is not the target's own; whose space has to have the config
    """
    asked = (workload.key, estimator)
    known = [record for record in records if (record.workload, record.estimator) == asked]
    if not known:  # a kernel's version is asked for only when something depends on it
        return None
    names = kernels_for(workload, target)
    found = best(
        known,
        workload=workload.key,
        target=target.kind,
        device=device or target.device,
        threads=threads if estimator is None else 1,
        versions={name: version(name, target.kind, workload.dtype) for name in names},
        estimator=estimator,
    )
    if found is None or found.config not in kernel(found.kernel).space(workload, target):
        return None
    return found
