"""Configs that were good elsewhere: where a search starts, and what a plan falls back on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields

from kernels import kernel as kernel_named
from kernels import kernels_for
from kernels.space import Config, Space
from kernels.workload import Workload, parse
from targets import machines
from targets.target import Limits, Target
from tune.database import Record, deciding

_Place = tuple[str, str, str, int, str | None]
ESTIMATES = 4


def similar(
    records: Iterable[Record],
    workload: Workload,
    kernel: str,
    space: Space,
    *,
    target: Target,
    threads: int,
    limit: int = 4,
    estimates: int = ESTIMATES,
) -> list[tuple[Config, Record]]:
    """Configs of the same kernel that won at the nearest shapes, devices and thread counts.

    Each is carried over to `space` and stands beside the record it comes from; nearest first.

    limit      places that they come from
    estimates  of one place, where they are of the workload itself: which of the best is the fastest
               they leave open
    """
    winners: dict[_Place, Record] = {}
    thought: defaultdict[_Place, list[Record]] = defaultdict(list)
    for record in records:
        if record.kernel != kernel or record.target != target.kind or record.time_s is None:
            continue
        place = _place(record)
        known = winners.get(place)
        if known is None or _rank(record) < _rank(known):
            winners[place] = record
        if record.estimator is not None and record.workload == workload.key:
            thought[place].append(record)

    def distance(record: Record) -> tuple[float, str]:
        away = _distance(workload, parse(record.workload))
        away += _other(record.device, target) + 0.25 * (record.threads != threads)
        away += 0.25 * (record.estimator is not None)
        return away, record.workload

    found: list[tuple[Config, Record]] = []
    places = 0
    for winner in sorted(winners.values(), key=distance):
        fresh: list[tuple[Config, Record]] = []
        for record in sorted(thought[_place(winner)], key=_rank) or [winner]:
            config = space.nearest(record.config)
            if config not in [known for known, _ in (*found, *fresh)]:
                fresh.append((config, record))
            if len(fresh) == estimates:
                break
        found += fresh
        places += bool(fresh)
        if places == limit:
            break
    return found


def nearest(
    records: Sequence[Record], workload: Workload, *, target: Target, threads: int
) -> tuple[Config, Record] | None:
    """The config to carry over and where it comes from; None where there is nothing of the kind.

    The first kernel for the workload that has one decides from where; of all that met there the
    fastest is taken.
    """
    names = kernels_for(workload, target)
    spaces = {name: kernel_named(name).space(workload, target) for name in names}
    for name, space in spaces.items():
        first = {"limit": 1, "estimates": 1}
        near = similar(records, workload, name, space, target=target, threads=threads, **first)
        for _, record in near:
            there = (
                one for one in records if one.kernel in spaces and _place(one) == _place(record)
            )
            winner = min(deciding(there), key=lambda one: one.time_s or math.inf, default=record)
            return spaces[winner.kernel].nearest(winner.config), winner
    return None


def _place(record: Record) -> _Place:
    """What has to be the same of two records whose times are compared."""
    return record.workload, record.target, record.device, record.threads, record.estimator


def _rank(record: Record) -> tuple[bool, float]:
    """Finals before trials, then the faster."""
    return (record.stage != "final", record.time_s or math.inf)


def _other(device: str, target: Target) -> float:
    """How far another device is; one with other vectors, whose tiles are others, is far."""
    if device == target.device:
        return 0.0
    known = machines(target.kind).DEVICES.get(device)
    if known is None or _vectors(known) != _vectors(target):
        return 2.0
    return 0.5


def _vectors(target: Target) -> tuple[int, int] | None:
    """Width and number of a CPU's vector registers."""
    limits = target.limits
    return (limits.vector_bits, limits.vector_registers) if isinstance(limits, Limits) else None


def _distance(one: Workload, other: Workload) -> float:
    """How many doublings lie between two workloads of a kind, over all their sizes."""
    away = 0.0
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name, None)
        if isinstance(a, int) and isinstance(b, int):
            away += abs(math.log2(a / b))
        elif a != b:
            away += 0.1
    return away
