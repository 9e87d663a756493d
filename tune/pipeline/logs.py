"""Log files kept: what they hold, what of it matters, and how two of them differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from kernels import KERNELS
from kernels.version import version
from kernels.workload import parse
from tune import database
from tune.database import Record
from tune.errors import UsageError

SEEDS = 4  # configs of an old kernel version that are kept, of one workload in one place


class Place(NamedTuple):
    """Where times can be compared: the same workload on the same machine, told the same way."""

    target: str
    device: str
    threads: int
    estimator: str
    workload: str

    @classmethod
    def of(cls, record: Record) -> Place:
        return cls(
            record.target, record.device, record.threads, record.estimator or "", record.workload
        )


def best(path: Path) -> list[dict[str, Any]]:
    """The records that decide, as data: of the winner in each place, those of its deciding stage.

    As a log of their own they build what the whole log builds.
    """
    found = []
    for records in _placed(database.read(path).records).values():
        present = [record for record in records if is_present(record)]
        winner = _winner(present)
        if winner is not None:
            deciding = database.deciding(present)
            found += [asdict(record) for record in deciding if _beside(record, winner)]
    return found


def merge(paths: Sequence[Path], output: Path) -> tuple[int, int]:
    """Add to the log at `output`, new or not, what it lacks of the others: records, lines skipped.

    LogError when a file cannot be used.
    """
    contents = [database.read(path) for path in paths]
    records = [record for content in contents for record in content.records]
    return database.add(output, records), sum(content.skipped for content in contents)


def add(found: Sequence[dict[str, Any]], output: Path) -> int:
    """Add to the log at `output` the records, as data, that it lacks; how many."""
    return database.add(output, filter(None, (database.decode(dict(one)) for one in found)))


def diff(old: Path, new: Path, threshold: float) -> list[dict[str, Any]]:
    """One row a place: the best times in both logs, whatever the kernels' versions.

    threshold  share of the time from which on it counts as faster or slower
    A row's `change` is faster, slower, same, added or gone; the largest ratios come first.
    """
    sides = [_placed(database.read(path).records) for path in (old, new)]
    rows = []
    for place in sorted({*sides[0], *sides[1]}):
        winners = [_winner(side.get(place, ())) for side in sides]
        before, after = (None if w is None else w.time_s for w in winners)
        if before is None and after is None:
            continue
        ratio = after / before if before and after else None
        rows.append(
            place._asdict()
            | {
                "old_s": before,
                "new_s": after,
                "ratio": ratio,
                "change": _change(before, after, threshold),
                "configs": [None if w is None else w.config for w in winners],
            }
        )
    return sorted(rows, key=lambda row: -(row["ratio"] or 0))


def prune(path: Path, output: Path) -> tuple[int, int]:
    """Write to `output`, a new file, what still serves: records kept, records left out.

    Left out are repetitions; of old kernel versions all but the few fastest of each place, which
    remain as seeds for a search; and lines that cannot be read, which are not counted.
    UsageError when there is such a file.
    """
    if output.exists():
        raise UsageError(f"{output} exists; expected the name of a new file; choose another -o")
    records = database.read(path).records
    unique = {database.identity(record): record for record in records}
    kept = {text for text, record in unique.items() if is_present(record)}
    for group in _placed(r for r in unique.values() if not is_present(r)).values():
        sound = [record for record in group if record.checked and record.seconds]
        seeds = sorted(sound, key=lambda record: (record.stage != "final", record.time_s))
        kept |= {database.identity(record) for record in seeds[:SEEDS]}
    database.append(output, [record for text, record in unique.items() if text in kept])
    return len(kept), len(records) - len(kept)


def stats(path: Path) -> dict[str, Any]:
    """What a log holds, in numbers."""
    contents = database.read(path)
    records = contents.records
    failures = Counter(record.error.partition(":")[0] for record in records if record.error)
    return {
        "records": len(records),
        "unreadable lines": contents.skipped,
        "repetitions": len(records) - len({database.identity(record) for record in records}),
        "workloads": len({record.workload for record in records}),
        "devices": sorted({f"{record.target}/{record.device}" for record in records}),
        "threads": sorted({record.threads for record in records}),
        "trials": sum(record.stage == "trial" for record in records),
        "finals": sum(record.stage == "final" for record in records),
        "estimates": sum(record.estimator is not None for record in records),
        "failures": dict(sorted(failures.items())),
        "of old kernels": sum(not is_present(record) for record in records),
        "first": min((record.when for record in records), default=None),
        "last": max((record.when for record in records), default=None),
    }


def is_present(record: Record) -> bool:
    """Whether the kernel is today's."""
    if record.kernel not in KERNELS:
        return False
    dtype = parse(record.workload).dtype
    return record.kernel_version == version(record.kernel, record.target, dtype)


def _placed(records: Iterable[Record]) -> dict[Place, list[Record]]:
    groups: dict[Place, list[Record]] = {}
    for record in records:
        groups.setdefault(Place.of(record), []).append(record)
    return groups


def _winner(records: Iterable[Record]) -> Record | None:
    """The best of the records, all of one place, whatever their kernels' versions.

    As in a plan the last meeting decides: another one's times are of another hour.
    """
    versions: dict[tuple[str, str], list[Record]] = {}
    for record in database.deciding(records):
        versions.setdefault((record.kernel, record.kernel_version), []).append(record)
    winners = []
    for (name, digits), group in versions.items():
        first = group[0]
        winner = database.best(
            group,
            workload=first.workload,
            target=first.target,
            device=first.device,
            threads=first.threads,
            versions={name: digits},
            estimator=first.estimator,
        )
        if winner is not None:
            winners.append(winner)
    return min(winners, key=lambda record: record.time_s or math.inf, default=None)


def _beside(record: Record, winner: Record) -> bool:
    """Whether one of the deciding records is of the same config and kernel."""
    same = ("kernel", "kernel_version", "config", "checked")
    return all(getattr(record, name) == getattr(winner, name) for name in same)


def _change(before: float | None, after: float | None, threshold: float) -> str:
    if before is None or after is None:
        return "added" if before is None else "gone"
    if after > before * (1 + threshold):
        return "slower"
    return "faster" if after < before / (1 + threshold) else "same"
