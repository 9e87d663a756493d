"""Stored results -> text. Measures nothing; the one place that scales units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tune.report.table import aligned, units

# Why a layer is computed as it is -> what the user should know of it.
WHYS = {
    "measured": "",
    "sibling": "measured on another GPU of the architecture; tune on this one",
    "estimated": "an estimator chose, no clock; tune on the device",
    "transferred": "configs from other shapes, devices or thread counts; tune to have its own",
    "default": "never measured anywhere; tune to make these layers fast",
}

# How dense multiply-adds are done.
MATHS = {
    "f16": "float16 on tensor cores",
    "tf32": "TF32 on tensor cores",
    "f32": "float32 on CUDA cores",
}


def tuning_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `pipeline.winners` or `pipeline.show` as lines: the best of each workload."""
    small, large = units({row["estimator"] for row in rows if row["trials"]} or {None})
    head = ("workload", "config", "trials", small, "GFLOP/s", "% of peak", "default ×")
    named = any("device" in row for row in rows)
    lines = [("device", *head) if named else head]
    for row in rows:
        cells = [row["workload"], "none", str(row["trials"]), "", "", "", ""]
        if row["time_s"] is not None:
            rate = row["flops"] / row["time_s"]
            cells[1] = " ".join(f"{name}={value}" for name, value in row["config"].items())
            cells[3:] = [
                f"{row['time_s'] * 1e6:.1f}",
                f"{rate / 1e9:.1f}",
                f"{rate / row['peak_flops']:.0%}" if row["peak_flops"] else "",
                f"{row['default_ratio']:.2f}" if row["default_ratio"] else "",
            ]
        place = f"{row['device']}/{row['estimator'] or row['threads']}" if named else None
        lines.append(tuple(cells) if place is None else (place, *cells))
    table = "\n".join(aligned(lines, left=3 if named else 2))
    if named or any(row["time_s"] is None for row in rows):
        return table
    total_s = sum(row["layers"] * row["time_s"] for row in rows)
    return f"{table}\nall layers: {total_s * 1e3:.2f} {large}"


def networks_table(networks: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """Rows of `pipeline.winners` of several networks, one line each."""
    estimators = {row["estimator"] for rows in networks.values() for row in rows if row["trials"]}
    _, large = units(estimators or {None})
    lines = [("network", "workloads", "trials", f"all layers, {large}", "% of peak")]
    for name, rows in networks.items():
        known = [row for row in rows if row["layers"]]
        trials = sum(row["trials"] for row in rows)
        total = share = ""
        if all(row["time_s"] is not None for row in known):
            total_s = sum(row["layers"] * row["time_s"] for row in known)
            total = f"{total_s * 1e3:.3f}"
            if all(row["peak_flops"] for row in known):
                floor_s = sum(row["layers"] * row["flops"] / row["peak_flops"] for row in known)
                share = f"{floor_s / total_s:.0%}"
        lines.append((name, str(len(known)), str(trials), total, share))
    return "\n".join(aligned(lines, left=1))


def plan_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `pipeline.explain` as lines: one a choice, and the sum of what is known."""
    small, large = units({row["estimator"] for row in rows if row["time_s"]} or {None})
    lines = [("layer", "kernel", "config", "why", small, "% of peak", "because")]
    for row in rows:
        took = share = because = ""
        if row["time_s"] is not None:
            took = f"{row['time_s'] * 1e6:.1f}"
            if row["peak_flops"]:
                share = f"{row['flops'] / row['time_s'] / row['peak_flops']:.0%}"
        if row["fused_s"] is not None:
            apart, fused = (f"{row[way] * 1e6:.1f} {small}" for way in ("apart_s", "fused_s"))
            because = f"{fused} in one, {apart} apart"
        config = " ".join(f"{name}={value}" for name, value in row["config"].items())
        lines.append((row["name"], row["kernel"], config, row["why"], took, share, because))
    table = aligned(lines, left=4)
    codes = {row["workload"]: row["code"] for row in rows if row["code"] is not None}
    table += [f"{workload}: {code}" for workload, code in codes.items()]
    known = [row["time_s"] for row in rows if row["time_s"] is not None]
    if len(known) == len(rows):
        table.append(f"all layers: {sum(known) * 1e3:.3g} {large}")
    return "\n".join(table)


def progress_line(event: Any) -> str:
    """A `pipeline.Progress` as a line: what was measured, the best of its workload, time left."""
    record = event.record
    result = record.error or f"{record.time_s * 1e6:.1f} {units({record.estimator})[0]}"
    best = ""
    if event.best_s is not None:
        rate = event.flops / event.best_s
        best = f", best {rate / 1e9:.1f} GFLOP/s = {rate / record.peak_flops:.0%} of peak"
    left = f", {max(0.0, event.left_s):.0f} s left" if event.left_s is not None else ""
    return f"{event.done:4d} {record.stage} {record.workload}: {result}{best}{left}"


def findings_table(findings: Sequence[Any]) -> str:
    """`doctor.Finding`s as lines, what is missing with its remedy."""
    rows = [(each.what, each.found or f"missing: {each.remedy}") for each in findings]
    return "\n".join(aligned(rows, left=2))


def roofline_table(result: dict[str, Any]) -> str:
    """A `pipeline.roofline` as lines: conditions, one row a distinct kernel, the sums."""
    tensor = result["tensor_flops"]
    node_s = result["node_s"]
    lines = [
        f"{result['model']}, batch {result['batch']}, {result['dtype']}, {result['device']} by its "
        f"datasheet: {result['memory_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"{result['fp32_flops'] / 1e12:.1f} TFLOP/s on CUDA cores, on tensor cores "
        f"{tensor['f16'] / 1e12:.1f} in float16 and {tensor['tf32'] / 1e12:.1f} in TF32",
        "a model: no GPU has measured any of this",
        "",
    ]
    head = ("kernel of", "layers", "MB", "GFLOP", "bound by", "floor µs", "predicted µs")
    rows = [
        (
            row["workload"],
            str(row["layers"]),
            f"{row['moved_bytes'] / 1e6:.2f}",
            f"{row['flops'] / 1e9:.2f}",
            row["bound"],
            f"{row['floor_s'] * 1e6:.2f}",
            "" if row["predicted_s"] is None else f"{row['predicted_s'] * 1e6:.2f}",
        )
        for row in result["kernels"]
    ]
    lines += [*aligned([head, *rows], left=1), ""]
    sums = ("network", "math", "kernels", "floor µs", f"+ {node_s * 1e6:g} µs each", "predicted µs")
    totals = [
        (
            total["kind"],
            MATHS[total["math"]],
            str(total["kernels"]),
            f"{total['floor_s'] * 1e6:.1f}",
            f"{(total['floor_s'] + total['kernels'] * node_s) * 1e6:.1f}",
            "" if total["predicted_s"] is None else f"{total['predicted_s'] * 1e6:.1f}",
        )
        for total in result["totals"]
    ]
    lines += aligned([sums, *totals], left=2)
    lines.append(
        f"+ {node_s * 1e6:g} µs each: what an empty kernel costs in a CUDA graph on an H200, and a "
        f"part of predictions"
    )
    return "\n".join(lines)


def devices_table(devices: Sequence[Any]) -> str:
    """`targets.Target`s as lines: what schedules are sized by, CPUs apart from GPUs."""
    cpus: list[tuple[str, ...]] = [
        ("kind", "device", "vector bits", "registers", "L1 KiB", "L2 KiB")
    ]
    gpus: list[tuple[str, ...]] = [
        ("kind", "device", "architecture", "SMs", "shared KiB", "L2 MiB", "GB/s", "f16 TFLOP/s")
    ]
    for device in dict.fromkeys(devices):
        limits = device.limits
        if device.kind == "cuda":
            gpus.append(
                (
                    device.kind,
                    device.device,
                    limits.arch,
                    str(limits.sms),
                    str(limits.shared_per_sm_bytes // 1024),
                    f"{limits.l2_bytes / 1024**2:g}",
                    f"{limits.memory_bytes_per_s / 1e9:g}",
                    f"{limits.tensor_f16_flops / 1e12:g}",
                )
            )
        else:
            cpus.append(
                (
                    device.kind,
                    device.device,
                    str(limits.vector_bits),
                    str(limits.vector_registers),
                    str(limits.l1_bytes // 1024),
                    str(limits.l2_bytes // 1024),
                )
            )
    tables = [aligned(cpus, left=2), aligned(gpus, left=3)]
    return "\n".join(line for table in tables if len(table) > 1 for line in [*table, ""]).rstrip()


def plan_summary(manifest: dict[str, Any]) -> str:
    """How many layers were measured, carried over or left at a default, and which were not."""
    layers = manifest["layers"]
    counts = {why: [layer["name"] for layer in layers if layer["why"] == why] for why in WHYS}
    parts = [f"{len(names)} {why}" for why, names in counts.items() if names]
    lines = [f"{len(layers)} layers: {', '.join(parts)}"]
    for why, consequence in WHYS.items():
        names = counts[why]
        if consequence and names:
            which = "all" if len(names) == len(layers) else ", ".join(names)
            lines.append(f"{why}: {which}; {consequence}")
    return "\n".join(lines)


def model_table(model: Any) -> str:
    """The layers of a `mobilenet.MobileNet` as lines, with multiply-adds and parameters in sum."""
    lines: list[tuple[str, ...]] = [("layer", "kind", "output", "stride", "multiply-adds")]
    for layer in model.layers:
        workload = layer.workload
        shape = "x".join(map(str, workload.y_shape[1:]))
        stride = str(getattr(workload, "stride", ""))
        kind = type(workload).__name__.lower()
        lines.append((layer.name, kind, shape, stride, f"{workload.macs / 1e6:.2f} M"))
    total = (
        f"{model.macs / 1e6:.2f} M multiply-adds, {model.parameters:,} parameters, "
        f"{model.classes} classes"
    )
    return "\n".join([*aligned(lines, left=3), total])
