"""What each layer takes inside its library, as the virtual machine that calls the kernels tells.

The library is the one that is shipped, with its own weights and memory, so that a layer finds its
input where the one before has left it. Between two kernels the clock is read, in C, by `trace` of
`tune/runners/guard.c`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kernels.reference import Array
from kernels.workload import flops, moved_bytes, parse
from tune.errors import UsageError

TEXT_BYTES = 1 << 16  # that the guard writes at once

Calls = tuple[tuple[str, float], ...]  # names of kernels in their order, and seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Bursts:
    """How times are taken: in rounds, each of a burst of inferences and of another that is traced.

    warmup  the first of a burst, which do not count; one at least
    timed   those that do
    """

    rounds: int = 15
    warmup: int = 2
    timed: int = 8

    @property
    def inferences(self) -> int:
        """Of all rounds."""
        return self.rounds * 2 * (self.warmup + self.timed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Seconds of inferences, and of each kernel of as many others."""

    inferences_s: tuple[float, ...]
    kernels: tuple[Calls, ...]


def trace(library: Path, threads: int, guard: Path, images: Array, bursts: Bursts) -> Trace:
    """Of a library on this machine. Runs in a worker.

    guard  the library of guard.c for this machine
    """
    import tvm

    from tune.runtime import load

    plain = load(library, threads)
    traced = plain.clone()
    functions = tvm.runtime.load_module(str(guard))
    traced.instrument(functions["trace"])
    buffer = tvm.runtime.tensor(np.zeros(TEXT_BYTES, np.uint8))
    x = plain.bind(images)
    inferences: list[float] = []
    kernels: list[Calls] = []
    for _ in range(bursts.rounds):
        seconds = []
        for _ in range(bursts.warmup + bursts.timed):
            start = time.perf_counter()
            plain.run(x)
            seconds.append(time.perf_counter() - start)
        inferences += seconds[bursts.warmup :]
        for _ in range(bursts.warmup + bursts.timed):
            traced.run(x)
        used = functions["calls"](buffer)
        kernels += split(buffer.numpy()[:used].tobytes().decode(), bursts)
    return Trace(inferences_s=tuple(inferences), kernels=tuple(kernels))


def split(text: str, bursts: Bursts) -> list[Calls]:
    """The calls of each inference of a burst that counts, from the guard's lines of all."""
    lines = [line.split() for line in text.splitlines()]
    calls = [(name, int(ns) * 1e-9) for name, ns in lines]
    each = len(calls) // (bursts.warmup + bursts.timed)
    inferences = [tuple(calls[at : at + each]) for at in range(0, len(calls), max(1, each))]
    return inferences[bursts.warmup :]


def rows(layers: Sequence[Mapping[str, Any]], trace: Trace) -> list[dict[str, Any]]:
    """One row a kernel, in their order, with its median seconds, and those recorded for it.

    layers  of a manifest, each computed by one kernel; before them, images of bytes may become
            floats, which is no layer

    UsageError when the library calls others.
    """
    first, *others = trace.kernels
    names = [name for name, _ in first]
    extra = len(names) - len(layers)
    if extra not in (0, 1) or any([name for name, _ in each] != names for each in others):
        raise UsageError(
            f"the library calls {len(names)} kernels; expected one for each of the {len(layers)} "
            f"layers of its manifest; build it again"
        )
    known = [{"name": name, "workload": None} for name in names[:extra]]
    return [
        _row(layer, median(each[number][1] for each in trace.kernels))
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
        # What an estimator says is no time.
        "recorded_s": layer["time_s"] if layer.get("why") == "measured" else None,
        "flops": workload and flops(workload),
        "moved_bytes": workload and moved_bytes(workload),
    }
