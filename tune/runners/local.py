"""Candidates built and measured on this machine, each in a process that may fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.reference import Array
from kernels.te import peak, stream
from targets.target import Target
from tune.profile import Bursts, Trace, trace
from tune.runners.builders import Builders
from tune.runners.candidate import Candidate, Loaded
from tune.runners.guard import build_guard
from tune.runners.meeting import together
from tune.runners.protocol import Entry, Outcome
from tune.runners.rehearsal import Rehearsal, rehearse
from tune.runners.samples import settled
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout, failure

if TYPE_CHECKING:
    from tvm.ir import IRModule

RUN_TIMEOUT_S = 30.0
REHEARSAL_TIMEOUT_S = 300.0
INFERENCE_TIMEOUT_S = 1.0  # of an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How the time of a candidate alone is taken; stored with it.

    repeat        samples; while they do not agree, because something else ran, all are taken anew
    attempts      sets of samples at most; of several the fastest counts
    min_repeat_s  how long a sample lasts at least, in calls without a pause
    rotate_bytes  weights are copied until they fill so much memory, and calls use one copy after
                  the other: in a network a layer's weights were last touched an inference ago
    """

    repeat: int = 5
    attempts: int = 6
    min_repeat_s: float = 0.01
    rotate_bytes: int = 24 << 20


TRIAL = Protocol()
FINAL = Rehearsal()


class LocalRunner:
    """Builds on all cores, then measures one candidate at a time on `threads` threads."""

    trial = TRIAL
    final = FINAL
    fuses = True

    def __init__(self, target: Target, threads: int, builders: int) -> None:
        self.threads, self.at_once = threads, builders
        self._target = target
        self._bench = Worker(threads)
        self._builders = Builders(target, builders)
        self._finalists: dict[Entry, Candidate | Outcome] = {}

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._bench.stop()
        self._builders.stop()

    def peak_flops(self, dtype: str) -> float:
        """What this machine's vector units can do on these threads, FLOP/s."""
        return self._bench.call(_peak, self._target, dtype, self.threads, timeout_s=RUN_TIMEOUT_S)

    def memory_bytes_per_s(self) -> float:
        """What these threads can read from memory."""
        arguments = (self._target, self.threads)
        return self._bench.call(_memory_rate, *arguments, timeout_s=RUN_TIMEOUT_S)

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Each entry and its outcome, in their order."""
        built = list(self._builders.build(entries))  # no compiler runs beside a measurement
        for entry, one in zip(entries, built, strict=True):
            yield entry, one if isinstance(one, Outcome) else self._timed(one)

    def expect(self, rivals: Iterable[Entry]) -> None:
        """Nothing: compilers would take the cores from who is measured."""

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        """One outcome a rival, in their order: its time inside `network`, taken in turns.

        network  what computes each layer, first to last; what cannot be built is left out
        rivals   for one workload of the network, or for two layers in one
        """
        missing = [e for e in dict.fromkeys((*network, *rivals)) if e not in self._finalists]
        self._finalists |= dict(zip(missing, self._builders.build(missing), strict=True))
        known = [self._finalists[entry] for entry in network]
        parts = [part for part in known if isinstance(part, Candidate)]

        def meet(rivals: Sequence[Candidate]) -> list[Outcome]:
            return self._bench.call(rehearse, parts, rivals, FINAL, timeout_s=REHEARSAL_TIMEOUT_S)

        return together(meet, [self._finalists[entry] for entry in rivals])

    def trace(self, library: Path, images: Array, bursts: Bursts) -> Trace:
        """Seconds of whole inferences of a network, and of its kernels."""
        guard = self._builders.folder / "guard.so"
        build_guard(self._target, guard)
        timeout_s = RUN_TIMEOUT_S + bursts.inferences * len(images) * INFERENCE_TIMEOUT_S
        arguments = (library, self.threads, guard, images, bursts)
        return self._bench.call(trace, *arguments, timeout_s=timeout_s)

    def _timed(self, candidate: Candidate) -> Outcome:
        try:
            return self._bench.call(time_alone, candidate, TRIAL, timeout_s=RUN_TIMEOUT_S)
        except (WorkerError, WorkerCrash, WorkerTimeout) as error:
            return Outcome(config=candidate.config, error=failure(error))
        finally:
            candidate.library.unlink(missing_ok=True)


def _peak(target: Target, dtype: str, threads: int) -> float:
    """Operations a second of the multiply-add loop; the best of some runs. Runs in a worker."""
    return peak.flops(target, dtype, threads) / min(_peak_loop(target, dtype, threads)())


def _memory_rate(target: Target, threads: int) -> float:
    """Bytes a second of a loop that only reads; the best of some runs. Runs in a worker."""
    run, read_bytes = _reading_loop(target, threads)
    return read_bytes / min(run())


@cache
def _peak_loop(target: Target, dtype: str, threads: int) -> Callable[[], Sequence[float]]:
    arrays = peak.arguments(target, dtype, threads)
    return _loop(peak.lower(target, dtype, threads), target, arrays, number=3, repeat=15)


@cache
def _reading_loop(target: Target, threads: int) -> tuple[Callable[[], Sequence[float]], int]:
    arrays = stream.arguments(target, threads)
    lowered = stream.lower(target, threads)
    return _loop(lowered, target, arrays, number=1, repeat=15), arrays[0].nbytes


def _loop(
    lowered: IRModule, target: Target, arrays: Sequence[Array], *, number: int, repeat: int
) -> Callable[[], Sequence[float]]:
    """What takes the compiled function's times, seconds a call."""
    import tvm

    module = tvm.compile(lowered, target=target.tvm()).mod
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    timer = module.time_evaluator("main", tvm.cpu(), number=number, repeat=repeat)
    return lambda: timer(*tensors).results


def time_alone(candidate: Candidate, protocol: Protocol) -> Outcome:
    """Check a candidate and, when it is right, time it. Runs in a worker."""
    loaded = Loaded(candidate)
    if loaded.error is not None:
        return Outcome(config=candidate.config, error=loaded.error)
    weights_bytes = sum(array.nbytes for array in loaded.packed)
    copies = 1 + protocol.rotate_bytes // max(weights_bytes, 1)
    rotation = [(loaded.x, *loaded.weights(), loaded.y) for _ in range(min(32, copies))]

    def round_s() -> float:
        start = time.perf_counter()
        for arguments in rotation:
            loaded.function(*arguments)
        return time.perf_counter() - start

    round_s()
    rounds = max(1, round(protocol.min_repeat_s / round_s()))

    def samples() -> tuple[float, ...]:
        calls = rounds * len(rotation)
        return tuple(sum(round_s() for _ in range(rounds)) / calls for _ in range(protocol.repeat))

    seconds = settled(samples, protocol.attempts)
    return Outcome(config=candidate.config, seconds=seconds, checked=True)
