"""Log files in, the records that count for a machine out, and what they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import KERNELS, kernel, kernels_for
from kernels.version import version
from kernels.workload import Separable, Workload, flops, parse, separables
from targets import machines
from targets.target import Target
from tune import database
from tune.database import Record
from tune.mobilenet import Layer
from tune.plan import plan

LOGS = Path(__file__).resolve().parents[2] / "logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Where records go, and the records that may be used.

    path   file that new records are appended to
    hints  further files, of other devices, whose configs may seed a search or fill a gap
    """

    path: Path
    hints: tuple[Path, ...] = ()

    @classmethod
    def at(cls, path: Path | None, target: Target) -> Log:
        """The log at `path` alone; by default the device's own, the other devices' as hints."""
        if path is not None:
            return cls(path=path)
        own = LOGS / target.kind / f"{target.device}.jsonl"
        return cls(path=own, hints=tuple(p for p in sorted(own.parent.glob("*.jsonl")) if p != own))

    def records(self, *, missing_ok: bool = True) -> tuple[Record, ...]:
        """All records, those of `path` first. LogError when a file cannot be read."""
        found = database.read(self.path, missing_ok=missing_ok).records
        for hint in self.hints:
            found += database.read(hint).records
        return found


def own(
    records: Sequence[Record],
    workload: Workload,
    name: str,
    target: Target,
    threads: int,
    estimator: str | None = None,
) -> list[Record]:
    """Records of exactly this: kernel in its present version, device and threads, measured or,
    with `estimator`, estimated by it.
    """
    key = workload.key
    return [
        record
        for record in records
        if record.workload == key
        and (record.kernel, record.kernel_version)
        == (name, version(name, target.kind, workload.dtype))
        and (record.target, record.device) == (target.kind, target.device)
        and record.threads == threads
        and record.estimator == estimator
    ]


def winners(
    layers: Sequence[Layer],
    target: Target,
    log: Log,
    *,
    threads: int,
    estimator: str | None = None,
) -> list[dict[str, Any]]:
    """One row a distinct workload: its best record, beside the default config where that ran.

    Two layers in one have a row of their own where they have a record. `layers` is how often the
    network computes a row's workload, which is never where two in one are faster.
    """
    records = log.records()
    counts = Counter(choice.workload for choice in plan(layers, records, target, threads))
    known = {record.workload for record in records}
    rows = []
    single = [layer.workload for layer in layers]
    for workload in dict.fromkeys((*single, *separables(single))):
        if isinstance(workload, Separable) and workload.key not in known:
            continue
        names = kernels_for(workload, target)
        mine = [
            record
            for name in names
            for record in own(records, workload, name, target, threads, estimator)
        ]
        rows.append({"layers": counts[workload]} | _row(workload, mine))
    return rows


def show(path: Path) -> tuple[list[dict[str, Any]], int]:
    """One row for each workload, device, thread count and estimator; the unreadable lines."""
    contents = database.read(path)
    groups: dict[tuple[str, str, int, str], list[Record]] = {}
    for record in contents.records:
        place = (record.device, record.workload, record.threads, record.estimator or "")
        groups.setdefault(place, []).append(record)
    rows = []
    for (device, key, threads, _), found in sorted(groups.items(), key=lambda g: g[0]):
        where = {"device": device, "threads": threads}
        rows.append(where | _row(parse(key), found))
    return rows, contents.skipped


def _row(workload: Workload, records: Sequence[Record]) -> dict[str, Any]:
    """What is known of a workload; `records` are its own, of one place and estimator."""
    first = records[0] if records else None
    winner = first and database.best(
        records,
        workload=workload.key,
        target=first.target,
        device=first.device,
        threads=first.threads,
        versions={name: version(name, first.target, workload.dtype) for name in KERNELS},
        estimator=first.estimator,
    )
    return {
        "workload": workload.key,
        "estimator": first and first.estimator,
        "trials": sum(r.stage == "trial" for r in records),
        "failed": sum(r.error is not None for r in records),
        "kernel": winner and winner.kernel,
        "config": winner and winner.config,
        "time_s": winner and winner.time_s,
        "default_ratio": winner and _default_ratio(workload, winner, records),
        "flops": flops(workload),
        "peak_flops": winner and winner.peak_flops,
    }


def _default_ratio(workload: Workload, winner: Record, records: Sequence[Record]) -> float | None:
    """How many times longer the kernel's default config takes, both alone; None if unknown."""
    device = machines(winner.target).DEVICES.get(winner.device)
    own = [r for r in records if r.kernel_version == winner.kernel_version]
    times = {database.canonical(config): time_s for config, time_s in database.history(own)}
    best_s = times.get(database.canonical(winner.config))
    if device is None or best_s is None:
        return None
    default = kernel(winner.kernel).space(workload, device).default
    default_s = times.get(database.canonical(default))
    return None if default_s is None else default_s / best_s
