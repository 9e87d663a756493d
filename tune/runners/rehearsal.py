"""Candidates timed where they will work: inside the whole network. Runs in a worker.

Alone, a kernel finds its input in the cache of the core that wants it. In a network another kernel,
split over the cores in another way, has just written that input, and a whole inference of weights
has passed through the caches since this layer's were last used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from statistics import median
from typing import Any

import numpy as np

from tune.runners.candidate import Candidate, Loaded
from tune.runners.protocol import Outcome
from tune.verify import case

SPREAD = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """How a time is taken in the network; stored with it.

    rounds  samples of each rival that count, its fastest
    most    rounds at most; after `rounds`, another only while the samples of some rival do not
            agree, because something else ran
    warmup  untimed inferences after a rival has taken its place
    timed   inferences that a sample is the mean of
    """

    rounds: int = 7
    most: int = 28
    warmup: int = 1
    timed: int = 2


def rehearse(
    network: Sequence[Candidate], rivals: Sequence[Candidate], rehearsal: Rehearsal
) -> list[Outcome]:
    """One outcome a rival, in their order: its time in the layers that it can compute.

    network  what computes each layer, first to last; each rival in turn stands in for the layers of
             its workload
    """
    loaded = [_loaded(rival) for rival in rivals]
    stage = _Stage(network)
    sound = [rival for rival, ready in zip(rivals, loaded, strict=True) if ready.error is None]
    fastest: dict[Candidate, tuple[float, ...]] = dict.fromkeys(sound, ())
    for number in range(rehearsal.most):
        if number >= rehearsal.rounds and all(map(agree, fastest.values())):
            break
        for rival, samples in fastest.items():
            samples = (*samples, stage.sample(rival, rehearsal))
            fastest[rival] = tuple(sorted(samples)[: rehearsal.rounds])
    return [
        Outcome(
            config=rival.config,
            seconds=fastest.get(rival, ()),
            error=ready.error,
            checked=ready.error is None,
        )
        for rival, ready in zip(rivals, loaded, strict=True)
    ]


def agree(samples: Sequence[float]) -> bool:
    """Whether most samples lie near the fastest: what was measured was not disturbed."""
    return median(samples) <= (1 + SPREAD) * min(samples)


class _Stage:
    """A network whose layers pass two buffers to and fro, as the compiled one's do."""

    def __init__(self, network: Sequence[Candidate]) -> None:
        self._network = network
        import tvm

        largest = max(
            prod(shape) for part in network for shape in (part.shapes[0], part.shapes[-1])
        )
        # Of TVM's own memory, which is aligned as compiled code expects.
        dtype = network[0].workload.dtype
        self._buffers = tuple(tvm.runtime.empty((largest,), dtype) for _ in range(2))
        self._image = tvm.runtime.tensor(case(network[0].workload)[0].ravel())

    def sample(self, rival: Candidate, rehearsal: Rehearsal) -> float:
        """Mean seconds of a layer that `rival` stands in for."""
        parts = [rival if part.workload == rival.workload else part for part in self._network]
        calls = [self._call(number, part) for number, part in enumerate(parts)]
        total_s, count = 0.0, 0
        for inference in range(rehearsal.warmup + rehearsal.timed):
            for part, (function, arguments) in zip(parts, calls, strict=True):
                start = time.perf_counter()
                function(*arguments)
                took_s = time.perf_counter() - start
                if part is rival and inference >= rehearsal.warmup:
                    total_s, count = total_s + took_s, count + 1
        return total_s / count

    def _call(self, number: int, part: Candidate) -> tuple[Any, tuple[Any, ...]]:
        """The function of one layer and its arguments; it reads what the layer before it writes."""
        x = self._view(number, part.shapes[0])
        y = self._view(number + 1, part.shapes[-1])
        return _loaded(part).function, (x, *_weights(part, number), y)

    def _view(self, number: int, shape: tuple[int, ...]) -> Any:
        """What lies between layer `number` - 1 and layer `number`, as a tensor of `shape`."""
        import tvm

        memory = np.from_dlpack(self._buffers[number % 2] if number else self._image)
        return tvm.runtime.from_dlpack(memory[: prod(shape)].reshape(shape))


@cache
def _loaded(candidate: Candidate) -> Loaded:
    return Loaded(candidate)


@cache
def _weights(candidate: Candidate, number: int) -> tuple[Any, ...]:
    """Each layer has weights of its own."""
    return _loaded(candidate).weights()
