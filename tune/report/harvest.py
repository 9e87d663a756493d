"""What a harvest brought -> a page of text. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tune.report.comparison import comparison_table

KINDS = ("tuning", "finals", "build", "comparison", "profile")


def summary(results: Mapping[str, Any]) -> str:
    """Results of `pipeline.harvest` as Markdown: card, what was right, how fast, what is left."""
    lines = ["# Harvest", ""]
    if machine := results.get("machine"):
        packages = (f"{name} {found}" for name, found in machine["packages"].items() if found)
        lines += [f"{machine['gpu'] or machine['target']}; {', '.join(packages)}", ""]
    if correctness := results.get("correctness"):
        failed = correctness["failed"]
        lines.append(
            f"Kernels: {correctness['checked'] - len(failed)} of {correctness['checked']} "
            f"candidates compute what the reference computes."
        )
        lines += [f"- {name} {workload} {config}: {e}" for workload, name, config, e in failed]
        lines.append("")
    if ceilings := results.get("ceilings"):
        lines += [_ceilings(ceilings), ""]
    for name in (name.partition("-")[2] for name in results if name.startswith("tuning-")):
        found = {kind: results.get(f"{kind}-{name}") for kind in KINDS}
        lines += [f"## {name}", "", *_setting(found), ""]
    state = results["state"]
    problems = {name: why for name, why in state["ended"].items() if why is not None}
    lines += [f"- {name} failed: {why}" for name, why in problems.items()]
    lines += [f"- {name} lacks {what}" for name, what in state["partial"].items()]
    if waiting := [name for name in state["left"] if name not in problems]:
        lines.append(f"- not done yet: {', '.join(waiting)}; run the same command again")
    return "\n".join(lines).rstrip() + "\n"


def _ceilings(found: Mapping[str, Any]) -> str:
    return (
        f"Ceilings of this card: copies {found['copy_bytes_per_s'] / 1e12:.2f} TB/s; products of "
        f"matrices {found['f16_flops'] / 1e12:.0f} TFLOP/s in float16, "
        f"{found['tf32_flops'] / 1e12:.0f} in TF32, {found['f32_flops'] / 1e12:.0f} in float32; "
        f"{found['node_s'] * 1e6:.2f} µs a kernel in a graph."
    )


def _setting(found: Mapping[str, Any]) -> list[str]:
    """Of one network, as far as it is known."""
    lines = []
    if tuning := found["tuning"]:
        lines.append(
            f"{tuning['trials']} trials, {tuning['failed']} of them failed, "
            f"{tuning['spent_s']:.0f} s."
        )
    if found["profile"]:
        lines += _profile(found["profile"])
    if found["comparison"]:
        lines += ["", "```", comparison_table(found["comparison"]), "```"]
    return lines


def _profile(found: Mapping[str, Any]) -> list[str]:
    """Which blocks are one kernel, and what the plan's kernels take alone and in the network."""
    lines = []
    rows = found["layers"]
    faster = {
        row["name"].partition(".")[0]: row["fused_s"] < row["apart_s"]
        for row in rows
        if row["fused_s"] is not None
    }
    names = [name for name, fused in faster.items() if fused]
    lines.append(
        f"{len(names)} of {len(faster)} blocks are faster as one kernel"
        f"{': ' * bool(names)}{', '.join(names)}."
    )
    known = [row["time_s"] for row in rows]
    if None not in known:
        lines.append(f"The plan's kernels, each alone: {sum(known) * 1e6:.1f} µs.")
    kernels = found["kernels"]
    if isinstance(kernels, list):
        busy, gaps = (sum(row[part] for row in kernels) for part in ("time_s", "gap_s"))
        lines.append(
            f"The same in the network: {(busy + gaps) * 1e6:.1f} µs, of them "
            f"{gaps * 1e6:.1f} µs between its {len(kernels)} kernels."
        )
    return lines
