"""Configs that were good elsewhere: where a search starts, and what a plan falls back on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

from kernels import KERNELS, kernels_for
from kernels.space import Config, Space
from kernels.version import version
from kernels.workload import Workload, flops, parse
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

    found: list[tuple[Config, Record]] = []
    places = 0
    for winner in sorted(winners.values(), key=_distance_to(workload, target, threads)):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a kernel is thought to take at a workload.

    record  its best at the nearest place that tells of it
    time_s  seconds expected
    """

    record: Record
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """Records, and the machine and number of threads of which something is asked."""

    records: Sequence[Record]
    target: Target
    threads: int

    def standings(self, workload: Workload) -> dict[str, Standing]:
        """The kernels that some place, this one included, tells of, the fastest first.

        Those of the nearest place stand to each other as they did there, and its fastest does as
        many operations a second and thread as there. Another one stands to them as it did at the
        nearest place where it met one of them: a machine says nothing of a kernel that it cannot
        run.
        """
        names = kernels_for(workload, self.target)
        distance = _distance_to(workload, self.target, self.threads)
        found: dict[str, Standing] = {}
        ordered = sorted(self._places[_kind(workload.key)], key=lambda one: distance(one[0]))
        while True:
            for first, times in ordered:
                there = {name: one for name, one in times.items() if name in names}
                if not there.keys() - found.keys():
                    continue
                pace = flops(workload) / flops(parse(first.workload)) * first.threads / self.threads
                if found:
                    met = [
                        found[name].time_s / there[name].time_s for name in found if name in there
                    ]
                    if not met:
                        continue  # until somebody is known who met somebody there
                    pace = min(met)
                for name in there.keys() - found.keys():
                    one = there[name]
                    found[name] = Standing(record=one.record, time_s=pace * one.time_s)
                break
            else:
                break
        order = {name: place for place, name in enumerate(names)}
        return dict(sorted(found.items(), key=lambda item: (item[1].time_s, order[item[0]])))

    @cached_property
    def _places(self) -> defaultdict[str, list[tuple[Record, dict[str, Standing]]]]:
        """By kind of workload the places that tell of it: one of their records, and what kernels
        took there.
        """
        kinds: defaultdict[str, defaultdict[_Place, list[Record]]]
        kinds = defaultdict(lambda: defaultdict(list))
        for record in self.records:
            if record.target == self.target.kind and record.time_s is not None:
                kinds[_kind(record.workload)][_place(record)].append(record)
        places: defaultdict[str, list[tuple[Record, dict[str, Standing]]]] = defaultdict(list)
        for kind, found in kinds.items():
            present = [
                current
                for records in found.values()
                if (current := [record for record in records if _is_present(record)])
            ]
            places[kind] = [
                (records[0], _fastest(records)) for records in present or found.values()
            ]
        return places


def _kind(key: str) -> str:
    """Of a workload with such a key, and of its elements."""
    return "/".join(key.split("/")[:2])


def _is_present(record: Record) -> bool:
    """Whether a kernel as it is now took the time."""
    dtype = parse(record.workload).dtype
    return (
        record.kernel in KERNELS
        and version(record.kernel, record.target, dtype) == record.kernel_version
    )


def _fastest(there: Sequence[Record]) -> dict[str, Standing]:
    """Of each kernel that a place tells of its best time there.

    Who did not take part in the last meeting is not thought faster than those who did.
    """
    met = deciding(there) or there
    times: dict[str, Standing] = {}
    least_s = 0.0
    for records in (met, there):
        for record in sorted(records, key=_time_s):
            known = Standing(record=record, time_s=max(least_s, _time_s(record)))
            times.setdefault(record.kernel, known)
        least_s = min(known.time_s for known in times.values())
    return times


def _time_s(record: Record) -> float:
    return record.time_s or math.inf


def _place(record: Record) -> _Place:
    """What has to be the same of two records whose times are compared."""
    return record.workload, record.target, record.device, record.threads, record.estimator


def _rank(record: Record) -> tuple[bool, float]:
    """Finals before trials, then the faster."""
    return (record.stage != "final", _time_s(record))


def _distance_to(
    workload: Workload, target: Target, threads: int
) -> Callable[[Record], tuple[float, str]]:
    """What tells how far from the workload on these threads the place of a record is."""

    def distance(record: Record) -> tuple[float, str]:
        away = _distance(workload, parse(record.workload))
        away += _other(record.device, target) + 0.25 * (record.threads != threads)
        away += 0.25 * (record.estimator is not None)
        return away, record.workload

    return distance


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
