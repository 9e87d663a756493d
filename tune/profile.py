"""What each layer takes inside its library, as the virtual machine that calls the kernels tells.

The library is the one that is shipped, with its own weights and memory, so that a layer finds its
input where the one before has left it. Between two kernels the clock is read, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from kernels.reference import Array
from kernels.workload import flops, moved_bytes, parse
from tune.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """How times are taken: in rounds, each of a burst of inferences and one of watched ones.

    warmup  the first of a burst, which do not count
    timed   those that do
    """

    rounds: int = 15
    warmup: int = 2
    timed: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Seconds of whole inferences, and of each kernel of as many others: names in their order."""

    inferences_s: tuple[float, ...]
    kernels: tuple[tuple[tuple[str, float], ...], ...]


def watch(library: Path, threads: int, images: Array, bursts: Bursts) -> Watched:
    """A library on this machine. Runs in a worker."""
    from tune.runtime import load

    network = load(library, threads)
    watched = network.clone()
    seen: list[tuple[str, float]] = []
    watched.watch(lambda name, seconds: seen.append((name, seconds)))
    whole: list[float] = []
    kernels: list[tuple[tuple[str, float], ...]] = []
    x = network.bind(images)
    for _ in range(bursts.rounds):
        for number in range(bursts.warmup + bursts.timed):
            start = time.perf_counter()
            network.run(x)
            if number >= bursts.warmup:
                whole.append(time.perf_counter() - start)
        for number in range(bursts.warmup + bursts.timed):
            seen.clear()
            watched.run(x)
            if number >= bursts.warmup:
                kernels.append(tuple(seen))
    return Watched(inferences_s=tuple(whole), kernels=tuple(kernels))


def rows(layers: Sequence[Mapping[str, Any]], watched: Watched) -> list[dict[str, Any]]:
    """One row a kernel, in their order, with its median seconds.

    layers  of a manifest, each computed by one kernel; before them, images of bytes may become
            floats, which is no layer

    UsageError when the library calls others.
    """
    first, *others = watched.kernels
    names = [name for name, _ in first]
    extra = len(names) - len(layers)
    if extra not in (0, 1) or any([name for name, _ in each] != names for each in others):
        raise UsageError(
            f"the library calls {len(names)} kernels; expected one for each of the {len(layers)} "
            f"layers of its manifest; build it again"
        )
    known = [{"name": name, "workload": None} for name in names[:extra]]
    return [
        _row(layer, median(each[number][1] for each in watched.kernels))
        for number, layer in enumerate([*known, *layers])
    ]


def _row(layer: Mapping[str, Any], time_s: float) -> dict[str, Any]:
    workload = parse(layer["workload"]) if layer["workload"] else None
    return {
        "name": layer["name"],
        "workload": layer["workload"],
        "kernel": layer.get("kernel"),
        "config": layer.get("config"),
        "time_s": time_s,
        "recorded_s": layer.get("time_s"),
        "flops": workload and flops(workload),
        "moved_bytes": workload and moved_bytes(workload),
    }
