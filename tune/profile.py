"""What the GPU does in an inference, kernel by kernel, as PyTorch's profiler sees it.

Runs in a worker. The profiler sees all that a process sends to the GPU, whoever sends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

INFERENCES = 20


def profile(library: Path, seed: int = 0) -> list[dict[str, Any]]:
    """One row a kernel, in their order: its name, median seconds, and of the gap before it."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    from tune.runtime import load

    torch.cuda.init()
    network = load(library)
    image = np.random.default_rng(seed).uniform(-1, 1, network.input_shape)
    x = network.bind(image.astype(network.dtype))
    for _ in range(3):  # the first captures the graph
        network.run(x)
    torch.cuda.synchronize()
    with recording(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(INFERENCES):
            network.run(x)
            torch.cuda.synchronize()
    spans = [
        (event.name, event.time_range.start * 1e-6, event.time_range.end * 1e-6)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return rows(spans, INFERENCES)


def rows(spans: Sequence[tuple[str, float, float]], inferences: int) -> list[dict[str, Any]]:
    """The same from names, starts and ends in seconds of all kernels of so many inferences.

    ValueError when they are not the same kernels each time.
    """
    ordered = sorted(spans, key=lambda span: span[1])
    each, rest = divmod(len(ordered), inferences)
    runs = [ordered[number * each : (number + 1) * each] for number in range(inferences)]
    if not each or rest or len({tuple(name for name, _, _ in run) for run in runs}) != 1:
        raise ValueError(
            f"{len(ordered)} kernels in {inferences} inferences; expected the same ones in each"
        )
    found = []
    for number, (name, _, _) in enumerate(runs[0]):
        gaps = [run[number][1] - run[number - 1][2] for run in runs] if number else [0.0]
        found.append(
            {
                "kernel": name,
                "time_s": median(run[number][2] - run[number][1] for run in runs),
                "gap_s": median(gaps),
            }
        )
    return found
