"""Stored profiles -> text."""

from __future__ import annotations

from typing import Any

from tune.report.table import aligned


def profile_table(profile: dict[str, Any]) -> str:
    """A stored `pipeline.profile` as lines: conditions, one row a kernel, the sum."""
    if "kernels" in profile:
        return _gpu_table(profile)
    threads = profile["threads"]
    conditions = (
        f"{profile['workload']}, {threads} thread{'s' if threads > 1 else ''}, "
        f"{profile['device']}, peak {profile['peak_flops'] / 1e9:.1f} GFLOP/s"
    )
    if profile["memory_bytes_per_s"] is not None:
        conditions += f", memory {profile['memory_bytes_per_s'] / 1e9:.1f} GB/s"
    if profile["load_average"] is not None:
        conditions += f", load average {profile['load_average']:.2f}"
    total_s = sum(row["time_s"] for row in profile["layers"])
    head = ("layer", "kernel", "µs", "share", "GFLOP/s", "% of peak", "GB/s", "as tuned, µs")
    rows = []
    for row in profile["layers"]:
        time_s, recorded_s = row["time_s"], row["recorded_s"]
        rate = share = moved = ""
        if row["workload"] is not None:
            rate = f"{row['flops'] / time_s / 1e9:.1f}"
            share = f"{row['flops'] / time_s / profile['peak_flops']:.0%}"
            moved = f"{row['moved_bytes'] / time_s / 1e9:.1f}"
        rows.append(
            (
                row["name"],
                row["kernel"] or "",
                f"{time_s * 1e6:.1f}",
                f"{time_s / total_s:.1%}",
                rate,
                share,
                moved,
                "" if recorded_s is None else f"{recorded_s * 1e6:.1f}",
            )
        )
    total = (
        f"all layers: {total_s * 1e3:.2f} ms; an inference without a trace: "
        f"{profile['inference_s'] * 1e3:.2f} ms"
    )
    return "\n".join([conditions, "", *aligned([head, *rows], left=2), total])


def _gpu_table(profile: dict[str, Any]) -> str:
    head = ("kernel", "µs", "idle before, µs")
    rows = [
        (row["kernel"], f"{row['time_s'] * 1e6:.2f}", f"{row['gap_s'] * 1e6:.2f}")
        for row in profile["kernels"]
    ]
    total_s = sum(row["time_s"] + row["gap_s"] for row in profile["kernels"])
    conditions = f"{profile['workload']}, {profile['device']}"
    total = f"all kernels: {total_s * 1e6:.2f} µs"
    return "\n".join([conditions, "", *aligned([head, *rows], left=1), total])
