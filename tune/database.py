"""Tuning records in JSON lines: the only memory.

A record is one line; those that belong together are written at once under a lock and synced, so
that a crash loses no more than them. A line that cannot be read is skipped and counted; merging
logs is concatenation.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from kernels.space import Config
from kernels.workload import parse
from targets import TARGETS
from tune.errors import LogError

FORMAT = 1
STAGES = ("trial", "final")
ESTIMATORS = ("instructions", "mca", "roofline")  # of a kind of machine, those that know more first
# These run nothing, so that there is no output to compare: their records are not `checked`, and are
# estimates all the same.
MODELS = ("roofline",)
MEETING = timedelta(seconds=10)  # within which the finals of rivals that met are recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One measurement of one config; its fields are those of a line of the log.

    workload    key of the workload
    target      kind of machine, device the machine itself
    stage       "trial", or "final" when it was timed in turn with its rivals
    seconds     samples of its time; none when it failed
    apart_s     median seconds of the two layers that it replaces, timed in turn with it
    error       why it failed, its kind first: invalid, compile, run, timeout or wrong
    checked     its output was compared with the reference and held; never so by a model
    estimator   what guessed the time; None when it was measured
    peak_flops  multiply-add peak of the threads used, measured in the same run, FLOP/s
    protocol    the rules by which the time was taken
    board       address of the board that measured, None for this machine
    ran         when it was sent there and when it had been measured, seconds since 1970
    when        UTC, ISO 8601
    """

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
    apart_s: float | None = None
    error: str | None
    checked: bool
    estimator: str | None = None
    peak_flops: float | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    board: str | None = None
    ran: tuple[float, float] | None = None
    tvm: str
    when: str

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"stage is {self.stage!r}; expected one of {', '.join(STAGES)}")
        if bool(self.seconds) == (self.error is not None):
            raise ValueError(
                f"seconds are {self.seconds} and error is {self.error!r}; expected one of the two"
            )
        if not all(0 < second < math.inf for second in self.seconds):
            raise ValueError(f"seconds are {self.seconds}; expected positive numbers")

    @property
    def time_s(self) -> float | None:
        """The median of the samples, None when the candidate failed."""
        return median(self.seconds) if self.seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What a log file holds: its records in order, and how many lines could not be read."""

    records: tuple[Record, ...]
    skipped: int


def append(path: Path, records: Iterable[Record]) -> None:
    """Add `records` to the log at `path`, made when missing. LogError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        # A crash may have torn the last line: end it, so that only that line is lost.
        start = b"\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b""
        lines = b"".join(json.dumps(asdict(record)).encode() + b"\n" for record in records)
        if os.write(descriptor, start + lines) != len(start + lines):
            raise OSError(None, "only a part could be written, is the disk full?")
        os.fsync(descriptor)
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(descriptor)


def read(path: Path, *, missing_ok: bool = False) -> Log:
    """All records of the log at `path`; of a file that is not there, none when `missing_ok`.

    LogError when the file cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            return Log(records=(), skipped=0)
        raise _unusable(path, error) from None
    parsed = [_parse(line) for line in content.split(b"\n") if line.strip()]
    records = tuple(record for record in parsed if record is not None)
    if not records and not _is_text(content):
        raise LogError(
            f"log {path} is no text; expected JSON lines as `run` writes them; name another --log"
        )
    return Log(records=records, skipped=len(parsed) - len(records))


def decode(found: Any) -> Record | None:
    """The record with the fields in `found`, None when they are none of this format."""
    try:
        if found["format"] != FORMAT:
            return None
        found["seconds"] = tuple(found["seconds"])
        found["ran"] = tuple(found["ran"]) if found.get("ran") else None
        record = Record(**{name: found[name] for name in _FIELDS if name in found})
    except (ValueError, TypeError, KeyError):
        return None
    return record if _is_sound(record) else None


def add(path: Path, records: Iterable[Record]) -> int:
    """Append to the log at `path`, new or not, what it lacks of `records`; how many. LogError."""
    known = {identity(record) for record in read(path, missing_ok=True).records}
    fresh = {identity(record): record for record in records}
    added = [record for text, record in fresh.items() if text not in known]
    append(path, added)
    return len(added)


def identity(record: Record) -> str:
    """A text that only equal records share."""
    return canonical(asdict(record))


def best(
    records: Iterable[Record],
    *,
    workload: str,
    target: str,
    device: str,
    threads: int,
    versions: Mapping[str, str],
    estimator: str | None = None,
) -> Record | None:
    """The record of the fastest config measured right there with a present kernel, or None.

    versions   the present version of each kernel that may win
    estimator  whose estimates are compared instead of measurements

    Finals decide, since a single trial may be luck, and of these the last meeting alone: times of
    one minute and another are not comparable, and whoever won before takes part again. Where
    nothing reached the finals, it is the median of a config's trials. Of the winner's records the
    one nearest to its time is returned. Neither the order of the records nor repetition matters.
    """
    usable = [
        record
        for record in records
        if (record.workload, record.target, record.device) == (workload, target, device)
        and record.threads == threads
        and versions.get(record.kernel) == record.kernel_version
        and record.estimator == estimator
    ]
    pools = _pools(deciding(usable))
    timed = [(_pooled_s(pool), name) for name, pool in pools.items()]
    if not timed:
        return None
    time_s, name = min(timed)
    return min(
        pools[name],
        key=lambda record: (abs(median(record.seconds) - time_s), canonical(asdict(record))),
    )


def deciding(records: Iterable[Record]) -> list[Record]:
    """Of one workload's records in one place the finals of the last meeting, or else all trials."""
    counted = [record for record in records if _counts(record)]
    return _last_meeting([record for record in counted if record.stage == "final"]) or counted


def _last_meeting(finals: list[Record]) -> list[Record]:
    """Those of the rivals that met last: they are recorded one right after the other."""
    times = [datetime.fromisoformat(record.when) for record in finals]
    first = max(times, default=datetime.max) - MEETING
    return [record for record, time in zip(finals, times, strict=True) if time >= first]


def history(records: Iterable[Record]) -> list[tuple[Config, float | None]]:
    """(config, seconds) of every config tried, first tried first: what a search learns from.

    records  those of one workload and kernel, measured in one place

    Seconds are the median over a config's trials; None when none of them gave a right answer.
    """
    pools = _pools(record for record in records if record.stage == "trial")
    entries: list[tuple[Config, float | None]] = []
    for pool in pools.values():
        sound = [record for record in pool if _counts(record)]
        entries.append((pool[0].config, _pooled_s(sound) if sound else None))
    return entries


def _counts(record: Record) -> bool:
    """Whether it is a time of what gave the right answer, or a model's that asked for none."""
    return bool(record.seconds) and (record.checked or record.estimator in MODELS)


def _pools(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each kernel and config; one that merging logs has repeated counts once."""
    pools: dict[str, dict[tuple[str, tuple[float, ...]], Record]] = {}
    for record in records:
        pool = pools.setdefault(f"{record.kernel} {canonical(record.config)}", {})
        pool.setdefault((record.when, record.seconds), record)
    return {name: list(pool.values()) for name, pool in pools.items()}


def _pooled_s(records: Iterable[Record]) -> float:
    return median(second for record in records for second in record.seconds)


def canonical(value: Mapping[str, Any]) -> str:
    """`value` as text, the same whatever the order of its keys."""
    return json.dumps(value, sort_keys=True)


_FIELDS = tuple(field.name for field in fields(Record))
_TEXTS = ("workload", "kernel", "kernel_version", "target", "device", "tvm", "when")


def _parse(text: bytes) -> Record | None:
    """The record in a line, None when it holds none of this format."""
    try:
        return decode(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _is_sound(record: Record) -> bool:
    """Whether the fields that others rely on are what they promise."""
    return (
        all(isinstance(getattr(record, name), str) for name in _TEXTS)
        and isinstance(record.error, str | None)
        and isinstance(record.estimator, str | None)
        and isinstance(record.peak_flops, int | float | None)
        and isinstance(record.apart_s, int | float | None)
        and isinstance(record.threads, int)
        and isinstance(record.checked, bool)
        and isinstance(record.protocol, dict)
        and isinstance(record.config, dict)
        and all(isinstance(value, int | str) for value in record.config.values())
        and record.target in TARGETS
        and _is_workload(record.workload)
        and _is_time(record.when)
    )


@cache
def _is_workload(key: str) -> bool:
    try:
        parse(key)
    except ValueError:
        return False
    return True


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _unusable(path: Path, error: OSError) -> LogError:
    return LogError(
        f"log {path} cannot be used: {error.strerror}; expected a file of JSON lines that can be "
        f"read and written; name another --log"
    )
