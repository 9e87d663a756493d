"""Records as a table for other programs, comma-separated values, and back."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tune import database
from tune.database import Record
from tune.errors import LogError, UsageError

COLUMNS = tuple(field.name for field in fields(Record))
# Columns whose cells are JSON: a list, an object, a number or nothing; all others are plain text.
TEXTS = ("workload", "kernel", "kernel_version", "target", "device", "stage", "tvm", "when")


def write_csv(log: Path, output: Path) -> int:
    """Write all records of `log` to `output`, one a row; how many. Any file there is replaced.

    UsageError when that is the log itself, or cannot be written.
    """
    if output.resolve() == log.resolve():
        raise UsageError(
            f"{output} is the log itself; expected another file for the table; choose another -o"
        )
    records = database.read(log).records
    try:
        with output.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(COLUMNS)
            for record in records:
                row = asdict(record)
                table.writerow([_cell(name, row[name]) for name in COLUMNS])
    except OSError as error:
        raise UsageError(
            f"cannot write {output}: {error.strerror}; expected a writable path; choose another -o"
        ) from None
    return len(records)


def read_csv(table: Path, log: Path) -> tuple[int, int]:
    """Add to `log` what it lacks of the records in `table`: how many, and rows skipped.

    LogError when `table` cannot be read or has other columns.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            missing = sorted(set(COLUMNS) - set(rows.fieldnames or ()))
            if missing:
                raise LogError(
                    f"table {table} has no columns {', '.join(missing)}; expected those that "
                    f"`log export` writes; export it again"
                )
            found = [_record(row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LogError(
            f"table {table} cannot be read: {error}; expected comma-separated values as "
            f"`log export` writes them; name another file"
        ) from None
    return database.add(log, filter(None, found)), found.count(None)


def _cell(name: str, value: Any) -> str:
    return str(value) if name in TEXTS else json.dumps(value)


def _record(row: dict[str, str]) -> Record | None:
    """The record in a row, None when it holds none."""
    try:
        found = {n: row[n] if n in TEXTS else json.loads(row[n]) for n in COLUMNS}
    except (TypeError, ValueError):
        return None
    return database.decode(found)
