"""What the GPU does in an inference, kernel by kernel, as PyTorch's profiler sees it.

Runs in a worker. The profiler sees all that a process sends to the GPU, whoever sends it.

A kernel that is launched ahead of the end of the one before (programmatic dependent launch) waits
for it within its own recorded span, so that spans overlap. Times here are what each kernel adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from kernels.reference import Array

INFERENCES = 20


def profile(library: Path, images: Array, inferences: int = INFERENCES) -> list[dict[str, Any]]:
    """One row a kernel, in their order, as `rows` makes them from so many inferences."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    from tune.runtime import load

    torch.cuda.init()
    network = load(library)
    x = network.bind(images)
    for _ in range(3):  # the first captures the graph
        network.run(x)
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    # There is one cycle of events; PyTorch warns whoever does not keep those of all.
    with recording(activities=activities, acc_events=True) as recorded:
        for _ in range(inferences):
            network.run(x)
            torch.cuda.synchronize()
    spans = [
        (event.name, event.time_range.start * 1e-6, event.time_range.end * 1e-6)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return rows(spans, inferences)


def rows(spans: Sequence[tuple[str, float, float]], inferences: int) -> list[dict[str, Any]]:
    """One row a kernel from names, starts and ends in seconds of all of so many inferences.

    time_s  from its start, or where that is later the latest end before it, to its own end; 0 where
            another one ends later
    gap_s   from the latest end before it to its start; 0 where it started earlier

    Both add up to the span of an inference; a row has the median of each over all inferences.
    ValueError when they are not the same kernels each time.
    """
    ordered = sorted(spans, key=lambda span: span[1])
    each, rest = divmod(len(ordered), inferences)
    runs = [ordered[number * each : (number + 1) * each] for number in range(inferences)]
    if not each or rest or len({tuple(name for name, _, _ in run) for run in runs}) != 1:
        raise ValueError(
            f"{len(ordered)} kernels in {inferences} inferences; expected the same ones in each"
        )
    parts = [_parts(run) for run in runs]
    return [
        {
            "kernel": name,
            "time_s": median(part[number][0] for part in parts),
            "gap_s": median(part[number][1] for part in parts),
        }
        for number, (name, _, _) in enumerate(runs[0])
    ]


def _parts(run: Sequence[tuple[str, float, float]]) -> list[tuple[float, float]]:
    """Of one inference, what each kernel adds to it, and the gap before that."""
    parts = []
    latest = run[0][1]
    for _, start, end in run:
        parts.append((max(0.0, end - max(start, latest)), max(0.0, start - latest)))
        latest = max(latest, end)
    return parts
