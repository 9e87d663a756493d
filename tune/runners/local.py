"""Candidates built and measured on this machine, each in a process that may fail."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels import kernel
from kernels.space import Config
from kernels.te import peak
from kernels.workload import Workload
from targets.target import Target
from tune.builder import build
from tune.runners.protocol import Outcome
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout
from tune.verify import case, difference

BUILD_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a time is taken; stored with it.

    repeat        samples a candidate, one a round when several compete
    min_repeat_s  how long a sample lasts at least, in calls without a pause
    rotate_bytes  weights are copied until they fill so much memory, and calls use one copy after
                  the other: in a network a layer's weights were last touched an inference ago
    """

    repeat: int = 5
    min_repeat_s: float = 0.01
    rotate_bytes: int = 12 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A built library and what it was built from."""

    workload: Workload
    kernel: str
    config: Config
    library: Path
    shapes: tuple[tuple[int, ...], ...]  # of x, wt, bias, y


TRIAL = Protocol()
FINAL = Protocol(repeat=21)


class LocalRunner:
    """Builds on all cores, then measures one candidate at a time on `threads` threads."""

    def __init__(self, target: Target, threads: int, builders: int) -> None:
        self._target = target
        self._threads = threads
        self._bench = Worker(threads)
        self._builders = [Worker() for _ in range(builders)]
        self._folder = tempfile.TemporaryDirectory(prefix="septune-")
        self._built = 0

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in (self._bench, *self._builders):
            worker.stop()
        self._folder.cleanup()

    def peak_flops(self) -> float:
        """What this machine's vector units can do on these threads, FLOP/s."""
        return self._bench.call(_peak, self._target, self._threads, timeout_s=RUN_TIMEOUT_S)

    def measure(
        self, workload: Workload, kernel: str, configs: Sequence[Config]
    ) -> Iterator[Outcome]:
        """One outcome a config, in their order."""
        for built in self._build_all(workload, [(kernel, config) for config in configs]):
            if isinstance(built, Outcome):
                yield built
            else:
                yield from self._run([built], TRIAL)
                built.library.unlink(missing_ok=True)

    def compete(
        self, workload: Workload, rivals: Sequence[tuple[str, Config]], protocol: Protocol
    ) -> list[Outcome]:
        """One outcome a rival (kernel, config), in their order; timed in turn, round by round."""
        built = self._build_all(workload, rivals)
        runnable = [candidate for candidate in built if isinstance(candidate, Candidate)]
        timed = iter(self._run(runnable, protocol) if runnable else [])
        outcomes = [b if isinstance(b, Outcome) else next(timed) for b in built]
        for candidate in runnable:
            candidate.library.unlink(missing_ok=True)
        return outcomes

    def _build_all(
        self, workload: Workload, wanted: Sequence[tuple[str, Config]]
    ) -> list[Candidate | Outcome]:
        """Libraries, or why there is none, made by all builders at once."""
        idle = list(self._builders)

        def make(number: int, name: str, config: Config) -> Candidate | Outcome:
            library = Path(self._folder.name) / f"{number}.so"
            worker = idle.pop()
            try:
                arguments = (workload, name, config, self._target, library)
                shapes = worker.call(build, *arguments, timeout_s=BUILD_TIMEOUT_S)
            except (WorkerError, WorkerCrash) as error:
                return Outcome(config=config, error=f"compile: {error}")
            except WorkerTimeout as error:
                return Outcome(config=config, error=f"timeout: compiler gave {error}")
            finally:
                idle.append(worker)
            return Candidate(
                workload=workload, kernel=name, config=config, library=library, shapes=shapes
            )

        numbers = range(self._built, self._built + len(wanted))
        self._built += len(wanted)
        with ThreadPoolExecutor(len(self._builders)) as pool:
            return list(pool.map(make, numbers, *zip(*wanted, strict=True)))

    def _run(self, candidates: list[Candidate], protocol: Protocol) -> list[Outcome]:
        """Outcomes of built candidates; when several fail as one, each is tried alone."""
        try:
            return self._bench.call(
                time_candidates, candidates, protocol, timeout_s=RUN_TIMEOUT_S * len(candidates)
            )
        except (WorkerError, WorkerCrash, WorkerTimeout) as error:
            if len(candidates) > 1:
                return [outcome for c in candidates for outcome in self._run([c], protocol)]
            kind = "timeout" if isinstance(error, WorkerTimeout) else "run"
            return [Outcome(config=candidates[0].config, error=f"{kind}: {error}")]


def _peak(target: Target, threads: int) -> float:
    """Operations a second of the multiply-add loop; the best of some runs. Runs in a worker."""
    import tvm

    shape = (threads, peak.CHAINS, target.limits.lanes("float32"))
    v, y = (tvm.runtime.tensor(np.ones(shape, np.float32)) for _ in range(2))
    module = tvm.compile(peak.lower(target, threads), target=target.tvm()).mod
    timer = module.time_evaluator("main", tvm.cpu(), number=3, repeat=15)
    return peak.flops(target, threads) / float(min(timer(v, y).results))


def time_candidates(candidates: list[Candidate], protocol: Protocol) -> list[Outcome]:
    """Check, then time the right ones round by round. Runs in a worker."""
    prepared = [_Prepared(candidate, protocol) for candidate in candidates]
    sound = [one for one in prepared if one.error is None]
    for _ in range(protocol.repeat):
        for one in sound:
            one.sample()
    return [
        Outcome(
            config=one.candidate.config,
            seconds=tuple(one.seconds),
            error=one.error,
            checked=one.error is None,
        )
        for one in prepared
    ]


class _Prepared:
    """A loaded candidate with its arguments in place, checked."""

    def __init__(self, candidate: Candidate, protocol: Protocol) -> None:
        import tvm

        self.candidate = candidate
        self.seconds: list[float] = []
        workload = candidate.workload
        x, wt, bias, _ = case(workload)
        scheduled = kernel(candidate.kernel)
        packed = scheduled.pack(workload, candidate.config, wt, bias)
        self._function = tvm.runtime.load_module(str(candidate.library))["main"]
        x = tvm.runtime.tensor(x.reshape(candidate.shapes[0]))
        y = tvm.runtime.tensor(np.full(candidate.shapes[-1], np.nan, np.float32))
        copies = min(16, 1 + protocol.rotate_bytes // max(packed[0].nbytes, 1))
        self._rotation = [
            (x, *(tvm.runtime.tensor(array) for array in packed), y) for _ in range(copies)
        ]
        for arguments in self._rotation:
            self._function(*arguments)
        wrong = difference(workload, y.numpy())
        self.error = f"wrong: {wrong}" if wrong else None
        took_s = self._round()
        self._rounds = max(1, round(protocol.min_repeat_s / took_s))

    def sample(self) -> None:
        """One more time: the mean of enough calls."""
        took_s = sum(self._round() for _ in range(self._rounds))
        self.seconds.append(took_s / (self._rounds * len(self._rotation)))

    def _round(self) -> float:
        """Seconds of one call with each copy of the weights."""
        function = self._function
        start = time.perf_counter()
        for arguments in self._rotation:
            function(*arguments)
        return time.perf_counter() - start
