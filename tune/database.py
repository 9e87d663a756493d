"""Tuning records in JSON lines: the only memory.

A record is one line, written at once under a lock and synced, so that a crash loses at most the line
being written. A line that cannot be read is skipped and counted; merging logs is concatenation.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from kernels.space import Config
from tune.errors import LogError

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One measurement of one config; logs/README.md says what each field means."""

    format: int = FORMAT
    workload: str
    kernel: str
    kernel_version: str
    config: Config
    target: str
    device: str
    threads: int
    stage: str
    seconds: tuple[float, ...]
    error: str | None
    checked: bool
    estimator: str | None = None
    peak_flops: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    tvm: str
    when: str

    @property
    def time_s(self) -> float | None:
        """The median of the samples, None when the candidate failed."""
        return median(self.seconds) if self.seconds and self.error is None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a log file holds: its records in order, and how many lines could not be read."""

    records: tuple[Record, ...]
    skipped: int


def append(path: Path, records: Iterable[Record]) -> None:
    """Add `records` to the log at `path`, which is made when missing. LogError when it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for record in records:
            line = json.dumps(asdict(record)).encode() + b"\n"
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a crash tore the last line: leave it alone
            if os.write(descriptor, line) != len(line):
                raise OSError(None, "only a part could be written; is the disk full?")
        os.fsync(descriptor)
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(descriptor)


def read(path: Path, *, missing_ok: bool = False) -> Contents:
    """All records of the log at `path`. LogError when there is no such file or it is no text."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError as error:
        if missing_ok:
            return Contents(records=(), skipped=0)
        raise _unusable(path, error) from None
    except OSError as error:
        raise _unusable(path, error) from None
    except UnicodeDecodeError:
        raise LogError(
            f"log {path} is no text; expected JSON lines as `run` writes them; name another --log"
        ) from None
    records, skipped = [], 0
    for line in text.splitlines():
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            skipped += 1
    return Contents(records=tuple(records), skipped=skipped)


def best(
    records: Iterable[Record],
    *,
    workload: str,
    target: str,
    device: str,
    threads: int,
    versions: Mapping[str, str],
) -> Record | None:
    """The record of the fastest config measured right there with a present kernel, or None.

    versions  the present version of each kernel that may win

    A config's time is the median of its finals, where single trials of luck are sorted out; only
    where nothing reached the finals, of its trials. The order of the records does not matter.
    """
    runs: dict[str, list[Record]] = {}
    for record in records:
        if (
            (record.workload, record.target, record.device) == (workload, target, device)
            and record.threads == threads
            and versions.get(record.kernel) == record.kernel_version
            and record.estimator is None
            and record.checked
            and record.time_s is not None
        ):
            name = f"{record.kernel} {json.dumps(record.config, sort_keys=True)}"
            runs.setdefault(name, []).append(record)
    finals = {name: [r for r in found if r.stage == "final"] for name, found in runs.items()}
    if any(finals.values()):
        runs = {name: found for name, found in finals.items() if found}
    ranked = sorted(
        (median(second for record in found for second in record.seconds), name)
        for name, found in runs.items()
    )
    if not ranked:
        return None
    return min(runs[ranked[0][1]], key=lambda record: (record.time_s or 0, record.when))


def history(records: Iterable[Record]) -> list[tuple[Config, float | None]]:
    """(config, seconds) of every trial, seconds None for a failure: what a search learns from."""
    return [(record.config, record.time_s) for record in records if record.stage == "trial"]


def _parse(line: str) -> Record | None:
    """The record in `line`, None when it holds none of this format."""
    names = {field.name for field in fields(Record)}
    try:
        found = json.loads(line)
        known = {name: value for name, value in found.items() if name in names}
        known["seconds"] = tuple(float(second) for second in known["seconds"])
        record = Record(**known)
        sound = (
            record.format == FORMAT
            and isinstance(record.config, dict)
            and isinstance(record.threads, int)
            and all(isinstance(getattr(record, name), str) for name in ("workload", "kernel"))
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if sound else None


def _unusable(path: Path, error: OSError) -> LogError:
    return LogError(
        f"log {path} cannot be used: {error.strerror}; expected a file of JSON lines that can be "
        f"read and written; name another --log"
    )
