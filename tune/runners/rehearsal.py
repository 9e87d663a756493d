"""Candidates timed where they will work: inside the whole network. Runs in a worker.

Alone, a kernel finds its input in the cache of the core that wants it. In a network another kernel,
split over the cores in another way, has just written that input, and a whole inference of weights
has passed through the caches since this layer's were last used.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from statistics import median
from typing import Any

import numpy as np

from kernels.workload import Separable, Workload
from tune.runners.candidate import Candidate, Loaded
from tune.runners.protocol import Outcome
from tune.runners.samples import in_turns
from tune.verify import case


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

    network  what computes each layer, first to last, as far as it could be built; each rival in
             turn stands in for the layers of its workload, two each where it computes two in one,
             and they take turns, too; where there are none it comes last
    """
    loaded = [_loaded(rival) for rival in rivals]
    stage = _Stage(network, rivals)
    sound = [rival for rival, ready in zip(rivals, loaded, strict=True) if ready.error is None]
    apart = (None,) if stage.has_both else ()
    fastest = in_turns(
        (*sound, *apart),
        lambda rival: stage.sample(rival, rehearsal),
        rounds=rehearsal.rounds,
        most=rehearsal.most,
    )
    return [
        Outcome(
            config=rival.config,
            seconds=fastest.get(rival, ()),
            apart_s=median(fastest[None]) if None in fastest and ready.error is None else None,
            error=ready.error,
            checked=ready.error is None,
        )
        for rival, ready in zip(rivals, loaded, strict=True)
    ]


class _Stage:
    """A network whose layers pass two buffers to and fro, as the compiled one's do.

    has_both  whether two layers are in it that rivals compute in one
    """

    def __init__(self, network: Sequence[Candidate], rivals: Sequence[Candidate]) -> None:
        import tvm

        workload = rivals[0].workload
        scenes = tuple(_scenes(network, workload))
        known = any(timed for _, timed in scenes)
        self.has_both = known and isinstance(workload, Separable)
        self._scenes = scenes if known else (*scenes, ((), True))
        players = (*network, *rivals)
        largest = max(
            prod(shape) for part in players for shape in (part.shapes[0], part.shapes[-1])
        )
        # Of TVM's own memory, which is aligned as compiled code expects.
        dtype = players[0].workload.dtype
        self._buffers = tuple(tvm.runtime.empty((largest,), dtype) for _ in range(2))
        self._image = tvm.runtime.tensor(case(players[0].workload)[0].ravel())

    def sample(self, rival: Candidate | None, rehearsal: Rehearsal) -> float:
        """Mean seconds of what `rival` stands in for; None leaves the network as it is."""
        cast: list[tuple[Candidate, bool]] = []
        for parts, timed in self._scenes:
            players = (rival,) if timed and rival is not None else parts
            cast += [(part, timed) for part in players]
        calls = [self._call(number, part) for number, (part, _) in enumerate(cast)]
        total_s = 0.0
        for inference in range(rehearsal.warmup + rehearsal.timed):
            for (_, timed), (function, arguments) in zip(cast, calls, strict=True):
                start = time.perf_counter()
                function(*arguments)
                took_s = time.perf_counter() - start
                if timed and inference >= rehearsal.warmup:
                    total_s += took_s
        return total_s / (rehearsal.timed * sum(timed for _, timed in self._scenes))

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


def _scenes(
    network: Sequence[Candidate], workload: Workload
) -> Iterator[tuple[tuple[Candidate, ...], bool]]:
    """The network's parts, by ones or, where `workload` is two layers in one, by twos; whether
    they compute it.
    """
    parts = deque(network)
    while parts:
        part = parts.popleft()
        if part.workload == workload:
            yield (part,), True
        elif parts and Separable.of(part.workload, parts[0].workload) == workload:
            yield (part, parts.popleft()), True
        else:
            yield (part,), False


@cache
def _loaded(candidate: Candidate) -> Loaded:
    return Loaded(candidate)


@cache
def _weights(candidate: Candidate, number: int) -> tuple[Any, ...]:
    """Each layer has weights of its own."""
    return _loaded(candidate).weights()
