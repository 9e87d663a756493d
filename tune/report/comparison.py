"""Stored comparisons with peers -> text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tune.peers import OURS
from tune.report.table import aligned

COMPARISON_COLUMNS = (
    "name",
    "version",
    "median ms",
    "p20",
    "p80",
    "× ours",
    "% of FMA floor",
    "max |diff|",
)


def comparison_table(comparison: dict[str, Any]) -> str:
    """A stored `bench.Comparison` as lines: conditions, one row a contender, who is absent.

    "% of FMA floor" is how near a median comes to the time that the multiply-adds alone take.
    """
    floor_s = comparison["floor_s"]
    rows = [
        (
            row["name"],
            row["version"],
            _milliseconds(row["median_s"]),
            _milliseconds(row["p20_s"]),
            _milliseconds(row["p80_s"]),
            f"{row['ratio_to_ours']:.2f}",
            f"{floor_s / row['median_s']:.0%}",
            f"{row['max_abs_diff']:.1e}",
        )
        for row in comparison["rows"]
    ]
    threads = comparison["threads"]
    conditions = (
        f"{comparison['workload']}, {threads} thread{'s' if threads > 1 else ''}, "
        f"{comparison['device']}, peak {comparison['peak_gflops']:.1f} GFLOP/s, "
        f"floor {_milliseconds(floor_s)} ms, load average {comparison['load_average']:.2f}"
    )
    absent = [f"absent: {each['name']}: {each['reason']}" for each in comparison["absent"]]
    return "\n".join([conditions, "", *aligned([COMPARISON_COLUMNS, *rows], left=2), *absent])


def comparisons_table(comparisons: Sequence[dict[str, Any]]) -> str:
    """Stored results of `bench`, one row a network: ours, and the best of the others.

    Of a `count.Tally` the same in instructions.
    """
    timed = "floor_s" in comparisons[0]
    what, floor, scale = ("median_s", "floor_s", 1e3) if timed else ("instructions", "floor", 1e-6)
    unit = "ms" if timed else "M instructions"
    lines = [("network", f"floor, {unit}", "ours", "% of floor", "best peer", "its", "× ours")]
    for each in comparisons:
        ours = next(row for row in each["rows"] if row["name"] == OURS)
        others = [row for row in each["rows"] if row is not ours]
        best = min(others, key=lambda row: row["ratio_to_ours"], default=None)
        lines.append(
            (
                each["workload"],
                f"{each[floor] * scale:.3f}",
                f"{ours[what] * scale:.3f}",
                f"{each[floor] / ours[what]:.0%}",
                best["name"] if best else "none",
                f"{best[what] * scale:.3f}" if best else "",
                f"{best['ratio_to_ours']:.2f}" if best else "",
            )
        )
    return "\n".join(aligned(lines, left=1))


def tally_table(tally: dict[str, Any]) -> str:
    """A stored `count.Tally` as lines, like `comparison_table`.

    "% of fmla floor" is how near a count comes to one multiply-add an instruction in every lane.
    """
    head = ("name", "version", "M instructions", "× ours", "% of fmla floor", "max |diff|")
    rows = [
        (
            row["name"],
            row["version"],
            f"{row['instructions'] / 1e6:.1f}",
            f"{row['ratio_to_ours']:.2f}",
            f"{tally['floor'] / row['instructions']:.0%}",
            f"{row['max_abs_diff']:.1e}",
        )
        for row in tally["rows"]
    ]
    conditions = (
        f"{tally['workload']}, executed instructions of one inference, 1 thread, emulated "
        f"{tally['device']}, floor {tally['floor'] / 1e6:.1f} M"
    )
    absent = [f"absent: {each['name']}: {each['reason']}" for each in tally["absent"]]
    return "\n".join([conditions, "", *aligned([head, *rows], left=2), *absent])


def _milliseconds(seconds: float) -> str:
    """A GPU's are few."""
    return f"{seconds * 1e3:.{2 if seconds >= 1e-3 else 4}f}"
