"""Candidates built and measured on this machine's GPU, each in a process that may fail.

A wrong access ends a process's use of the GPU, and a kernel that does not end, the process: after
any failure the next candidate has a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise

from kernels.workload import Separable, Workload, moved_bytes
from targets.target import Target
from tune import ceilings
from tune.runners.builders import Builders
from tune.runners.candidate import Candidate
from tune.runners.graphs import check, time_alone, time_in_turns
from tune.runners.meeting import together
from tune.runners.protocol import Entry, Outcome
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout, failure

RUN_TIMEOUT_S = 90.0  # at batch 256 some of it is the host's, which makes the case
TURNS_TIMEOUT_S = 300.0
QUEUE = 2  # candidates of a batch for each builder: while the first are built, the GPU is idle
DATASHEET, MATMUL = "datasheet", "product of matrices by PyTorch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How the time of a candidate alone is taken; stored with it.

    Launches are one graph between two events, so that a kernel of 3 µs does not wait for a host
    that takes as long to launch it; the gap between two kernels of a graph counts, as it does in
    a network, which is a graph, too.

    repeat        samples; while they do not agree, because something else ran, all are taken anew
    attempts      sets of samples at most; of several the fastest counts
    launches      in a graph, at least
    min_repeat_s  how long a sample lasts at least
    rotate_bytes  x, weights and y are copied until they fill so much memory, and launches use one
                  copy after the other; twice the second-level cache, so that nothing a launch
                  touched is still in it when its turn comes again
    peak          what told the peak that is stored with the time
    """

    repeat: int = 5
    attempts: int = 6
    launches: int = 20
    min_repeat_s: float = 0.005
    rotate_bytes: int
    peak: str = DATASHEET


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How rivals are timed in turns; stored with the times.

    Copies fill as much memory as an inference touches, up to twice the second-level cache, so that
    a launch finds in the cache what it would find there in the network: at batch 1 all of it, at
    batch 256 nothing.

    rounds  samples of each rival that count, its fastest
    most    rounds at most; after `rounds`, another only while the samples of some rival do not
            agree, because something else ran
    """

    rounds: int = 7
    most: int = 28
    launches: int = 20
    min_repeat_s: float = 0.005
    peak: str = DATASHEET


class GpuRunner:
    """Builds on all cores, measures one candidate at a time."""

    threads = 1  # on the host, which launches
    fuses = True

    def __init__(
        self, target: Target, builders: int, peaks: Mapping[str, float] | None = None
    ) -> None:
        """`peaks` are those that `peak_flops` would measure, as far as they are known."""
        self._target, self.at_once = target, QUEUE * builders
        self._peaks = peaks or {}
        self._bench = Worker()
        self._pytorch = Worker()  # whoever has loaded PyTorch measures nothing else
        self._builders = Builders(target, builders)
        self._finalists: dict[Entry, Future[Candidate | Outcome]] = {}
        self._peak = DATASHEET

    def __enter__(self) -> GpuRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._bench.stop()
        self._pytorch.stop()
        self._builders.stop()

    @property
    def trial(self) -> Protocol:
        return Protocol(rotate_bytes=2 * self._target.gpu.l2_bytes, peak=self._peak)

    @property
    def final(self) -> Turns:
        return Turns(peak=self._peak)

    def peak_flops(self, dtype: str) -> float:
        """Of a large product of matrices, in float32 as TF32; by the datasheet without PyTorch."""
        if dtype in self._peaks:
            self._peak = MATMUL
            return self._peaks[dtype]
        try:
            measured = self._pytorch.call(ceilings.matmul_flops, dtype, timeout_s=RUN_TIMEOUT_S)
        except (WorkerError, WorkerCrash, WorkerTimeout):
            self._pytorch.stop()
            self._peak = DATASHEET
            return self._target.gpu.peak_flops(dtype)
        self._peak = MATMUL
        return measured

    def memory_bytes_per_s(self) -> None:
        """Not told."""

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Each entry and its outcome, in their order.

        Compilers run meanwhile: a GPU that executes a graph does not wait for the host.
        """
        for entry, built in zip(entries, self._builders.build(entries), strict=True):
            yield entry, self._run(time_alone, built, self.trial)

    def check(self, entries: Sequence[Entry]) -> Iterator[Outcome]:
        """One outcome an entry, in their order: whether it computes what it should, no time."""
        for built in self._builders.build(entries):
            yield self._run(check, built)

    def expect(self, rivals: Iterable[Entry]) -> None:
        """Those who will compete, in about this order: compilers begin with them."""
        for entry in rivals:
            if entry not in self._finalists:
                self._finalists[entry] = self._builders.submit(entry)

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        """One outcome a rival, in their order: its time, taken in turns.

        network  of which only what rivals of two layers in one stand in for is built; it says how
                 much memory an inference touches
        """
        apart = _apart(network, rivals[0].workload)
        self.expect((*apart, *rivals))
        parts = [self._finalists[entry].result() for entry in apart]
        sound = [part for part in parts if isinstance(part, Candidate)]
        sound = sound if len(sound) == len(parts) else []
        touched = sum(moved_bytes(entry.workload) for entry in network)
        touched = min(touched, self.trial.rotate_bytes)  # more than that changes nothing

        def meet(rivals: Sequence[Candidate]) -> list[Outcome]:
            arguments = (rivals, sound, touched, self.final)
            try:
                return self._bench.call(time_in_turns, *arguments, timeout_s=TURNS_TIMEOUT_S)
            except (WorkerError, WorkerCrash, WorkerTimeout):
                self._bench.stop()
                raise

        return together(meet, [self._finalists[entry].result() for entry in rivals])

    def _run(self, step: object, built: Candidate | Outcome, *arguments: object) -> Outcome:
        """The outcome of a step with a candidate, in the worker, which a failure ends."""
        if isinstance(built, Outcome):
            return built
        try:
            outcome: Outcome = self._bench.call(step, built, *arguments, timeout_s=RUN_TIMEOUT_S)  # type: ignore[arg-type]
        except (WorkerError, WorkerCrash, WorkerTimeout) as error:
            self._bench.stop()
            outcome = Outcome(config=built.config, error=failure(error))
        built.library.unlink(missing_ok=True)
        return outcome


def _apart(network: Sequence[Entry], workload: Workload) -> tuple[Entry, ...]:
    """The two entries that `workload` is in one, none where it is one layer's."""
    for first, second in pairwise(network):
        if Separable.of(first.workload, second.workload) == workload:
            return first, second
    return ()
