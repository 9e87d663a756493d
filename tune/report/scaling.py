"""What a model makes of more cores -> lines of text. Measures nothing."""

from __future__ import annotations

from typing import Any

from tune.report.table import aligned

# Terms of `tune.multicore` -> the heads of their columns.
TERMS = {
    "even_s": "even",
    "uneven_s": "uneven",
    "memory_s": "memory",
    "exchange_s": "exchange",
    "fork_join_s": "fork, join",
}
# Fields of `tune.multicore.Cores` -> what they are, and in what unit.
CORES = {
    "fork_join_s": ("fork and join of a loop, each further thread", 1e6, "µs"),
    "far_fork_join_s": ("the same, of another L3", 1e6, "µs"),
    "near_bytes_per_s": ("to read what another core wrote, beyond one's own", 1e-9, "GB/s"),
    "far_bytes_per_s": ("the same, of another L3", 1e-9, "GB/s"),
    "cores_per_l3": ("cores that share an L3", 1, ""),
    "core_bytes_per_s": ("from memory to one core", 1e-9, "GB/s"),
    "memory_bytes_per_s": ("from memory to all", 1e-9, "GB/s"),
}
WAYS = {
    "planned": "all threads on one, as tuned",
    "divided": "all threads on one, split anew",
    "apiece": "each thread on one of its own",
}


def scaling_table(result: dict[str, Any]) -> str:
    """A `pipeline.scaling` as lines: conditions, three rows a thread count, records beside it."""
    head = ("threads", "batches", "ms", "images/s", "% of floor", *TERMS.values())
    rows = []
    for row in result["rows"]:
        for way, name in WAYS.items():
            found = row[way]
            rows.append(
                (
                    str(row["threads"]),
                    name,
                    _milliseconds(found["seconds"]),
                    f"{found['images_per_s']:.0f}",
                    f"{found['floor_s'] / found['seconds']:.0%}",
                    *(
                        _milliseconds(found["terms"][term]) if way != "apiece" else ""
                        for term in TERMS
                    ),
                )
            )
    lines = [*_conditions(result), "", *aligned([head, *rows], left=2), *_most(result)]
    if result["check"]:
        lines += ["", *_check(result["check"])]
    return "\n".join(lines)


def _conditions(result: dict[str, Any]) -> list[str]:
    """What was computed, what is measured of it and what is assumed."""
    cores, layers, carried = result["cores"], result["layers"], result["carried_over"]
    known = " and ".join(map(str, result["recorded_threads"]))
    rows = [
        (what, f"{cores[name] * scale:.4g} {unit}".strip(), result["sources"][name])
        for name, (what, scale, unit) in CORES.items()
    ]
    return [
        f"{result['model']}, batch {result['batch']}, {result['dtype']}, {result['device']}: "
        f"a model; nobody has measured any of this on other than {known} threads",
        f"{layers - carried} of {layers} layers measured on one thread"
        f"{', the others by their multiply-adds' if carried else ''}, "
        f"at {result['core_flops'] / 1e9:.0f} GFLOP/s a core",
        "",
        *aligned(rows, left=3),
    ]


def _most(result: dict[str, Any]) -> list[str]:
    """Where an inference stops to get faster, and on what the time goes then."""
    best, last = result["fastest"], result["rows"][-1]
    terms = {name: last["planned"]["terms"][term] for term, name in TERMS.items()}
    longest = max(terms, key=lambda name: terms[name])
    threads = last["threads"]
    lines = [
        f"as tuned, one is fastest on {best['threads']} threads, "
        f"{_milliseconds(best['seconds'])} ms; on {threads} most of it is: {longest}"
    ]
    few = [
        f"{kernel['name']} {min(kernel['tasks'])}"
        for kernel in result["tasks"]
        if min(kernel["tasks"]) < threads
    ]
    if few:
        lines.append(f"fewer tasks than {threads} threads, as tuned: {', '.join(few)}")
    return lines


def _check(rows: list[dict[str, Any]]) -> list[str]:
    """Predictions of what is recorded."""
    head = ("layers", "threads", "recorded on 1, ms", "predicted, ms", "recorded, ms", "ratio")
    lines = [
        (
            row["kind"],
            str(row["threads"]),
            *(_milliseconds(row[name]) for name in ("alone_s", "predicted_s", "recorded_s")),
            f"{row['predicted_s'] / row['recorded_s']:.2f}",
        )
        for row in rows
    ]
    return aligned([head, *lines], left=1)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
