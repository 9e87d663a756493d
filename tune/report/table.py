"""Rows of text in columns, and the names of what they count."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """The rows as lines, columns padded to one width; the first `left` columns are words."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def units(estimators: set[str | None]) -> tuple[str, str]:
    """Names of 1e-6 and 1e-3 of what the records' seconds stand for: an estimate's are nominal."""
    if len(estimators) > 1:
        return "µs or k", "ms or M"
    (estimator,) = estimators
    counted = {"instructions": "instructions", "mca": "cycles"}.get(estimator or "")
    return ("µs", "ms") if counted is None else (f"k {counted}", f"M {counted}")
