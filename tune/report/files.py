"""What log files and packages hold -> text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from tune.report.table import aligned, units

CHANGES = ("slower", "faster", "same", "added", "gone")  # of `pipeline.diff`


def records_table(records: Sequence[dict[str, Any]]) -> str:
    """Records as data, as lines: what each config of a workload took."""
    head = ("device", "workload", "kernel", "config", "stage", "time")
    rows = [
        (
            f"{record['device']}/{record['estimator'] or record['threads']}",
            record["workload"],
            record["kernel"],
            " ".join(f"{name}={value}" for name, value in record["config"].items()),
            record["stage"],
            f"{median(record['seconds']) * 1e6:.1f} {units({record['estimator']})[0]}",
        )
        for record in records
    ]
    return "\n".join(aligned([head, *rows], left=5))


def difference_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `pipeline.diff` as lines, and how many changed in which way."""
    head = ("device", "workload", "change", "old", "new", "new/old")
    lines = [head]
    for row in rows:
        times = [row["old_s"], row["new_s"]]
        unit = units({row["estimator"] or None})[0]
        lines.append(
            (
                f"{row['device']}/{row['estimator'] or row['threads']}",
                row["workload"],
                row["change"],
                *("" if time_s is None else f"{time_s * 1e6:.1f} {unit}" for time_s in times),
                f"{row['ratio']:.2f}" if row["ratio"] else "",
            )
        )
    counts = Counter(row["change"] for row in rows)
    told = [f"{counts[change]} {change}" for change in CHANGES if counts[change]]
    return "\n".join([*aligned(lines, left=3), ", ".join(told) or "nothing in common"])


def facts_table(facts: dict[str, Any]) -> str:
    """Names and values as lines; what holds nothing is left out."""
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {key}" for key, count in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        if value not in (None, ""):
            rows.append((name, str(value)))
    return "\n".join(aligned(rows, left=2))


def package_table(package: dict[str, Any]) -> str:
    """A stored `package.Package` as lines: bytes of each part, and what it took to start."""
    parts = package["parts"]
    total = sum(parts.values())
    rows = [("part", "bytes"), *((name, f"{size:,}") for name, size in parts.items())]
    lines = aligned([*rows, ("all", f"{total:,}")], left=1)
    lines.append(
        f"{(total - parts['weights']) / 2**20:.2f} MiB and the weights; glibc {package['glibc']} "
        f"or newer"
    )
    told = package["measured"]
    if told is None:
        lines.append(f"not run here: this machine is no {package['device']}")
    else:
        lines.append(
            f"load {told['load_s'] * 1e3:.1f} ms, first inference {told['first_s'] * 1e3:.1f} ms, "
            f"then {told['median_s'] * 1e3:.2f} ms on {told['threads']} threads; "
            f"resident {told['resident_bytes'] / 2**20:.1f} MiB"
        )
    return "\n".join(lines)


def verification_table(result: dict[str, Any]) -> str:
    """A result of `pipeline.verify` as lines: each winner then and now, the verdict, its reach."""
    small, _ = units({result["estimator"]})
    head = ("layer", "workload", "verdict", f"then {small}", f"now {small}", "ratio", "finds")
    lines = [head]
    for row in result["rows"]:
        numbers = ["", "", ""]
        if row["ratio"] is not None:
            numbers = [f"{row['now_s'] * 1e6:.1f}", f"{row['ratio']:.2f}"]
            numbers.append(f"{row['detectable']:.2f}")
        then = f"{row['recorded_s'] * 1e6:.1f}"
        lines.append((row["name"], row["workload"], row["verdict"], then, *numbers))
    table = aligned(lines, left=3)
    finds = [row["detectable"] for row in result["rows"] if row["detectable"] is not None]
    if finds:
        table.append(
            f"slower than {1 + result['tolerance']:.2f} times is a regression; in this run every "
            f"winner's is found with 95% from {max(finds):.2f} times on"
        )
    if result["unverified"]:
        table.append(f"without a record to verify: {', '.join(result['unverified'])}")
    return "\n".join(table)
