"""Candidates for a GPU, judged without one: compiled for it, counted, and timed by a model.

Nothing runs and no output is compared, so that an outcome is never `checked`. Kernels are compared
with the reference elsewhere: in Triton's interpreter, and on a stand-in for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

from kernels.space import Config
from kernels.workload import Workload, moved_bytes
from targets.target import Target
from tune import cubin
from tune.launches import launches
from tune.pins import installed
from tune.prediction import MEASURED, Launched, Measured, predict
from tune.runners.protocol import Entry, Outcome
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

COMPILE_TIMEOUT_S = 60.0
COMPILERS = ("triton", "nvidia-cuda-nvcc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What an estimate rests on, stored with it; `tools` are the compilers and their versions."""

    measured: Measured
    tools: str


class RooflineRunner:
    """Compiles and judges `workers` candidates at a time."""

    threads = 1
    fuses = True  # what is saved is memory traffic and a launch, which the model is made of

    def __init__(self, target: Target, workers: int, measured: Measured = MEASURED) -> None:
        """SetupError without NVIDIA's disassembler."""
        cubin.tool()
        self._target = target
        self._measured = measured
        self._workers, self.at_once = [Worker() for _ in range(workers)], workers
        self.trial = self.final = Protocol(
            measured=measured,
            tools=", ".join(
                f"{package} {found}" for package in COMPILERS if (found := installed(package))
            ),
        )

    def __enter__(self) -> RooflineRunner:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def peak_flops(self, dtype: str) -> float:
        """By the datasheet."""
        return self._target.gpu.peak_flops(dtype)

    def memory_bytes_per_s(self) -> None:
        """Not told."""

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Each entry and its outcome, in their order; its one sample is the predicted time."""
        idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def judge(entry: Entry) -> Outcome:
            workload, config, worker = entry.workload, entry.config, idle.get()
            arguments = (workload, entry.kernel, config, self._target)
            try:
                found = worker.call(launches, *arguments, timeout_s=COMPILE_TIMEOUT_S)
            except (WorkerError, WorkerCrash) as error:
                return Outcome(config=config, error=f"compile: {error}")
            except WorkerTimeout as error:
                return Outcome(config=config, error=f"timeout: compiler gave {error}")
            finally:
                idle.put(worker)
            return self._judged(workload, config, found)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            try:
                yield from zip(entries, pool.map(judge, entries), strict=True)
            finally:
                pool.shutdown(cancel_futures=True)

    def expect(self, rivals: Iterable[Entry]) -> None:
        """Nothing: nobody competes."""

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        """None: what was estimated once is known."""
        return []

    def _judged(self, workload: Workload, config: Config, found: Sequence[Launched]) -> Outcome:
        """The sum over the launches, unless one of them is no kernel to ship."""
        least, gpu = moved_bytes(workload), self._target.gpu
        seconds = 0.0
        for launched in found:
            facts = launched.facts
            if facts.local_bytes or facts.spills:
                return Outcome(
                    config=config,
                    error=f"invalid: {facts.name} keeps {facts.local_bytes} bytes a thread in "
                    f"memory, with {facts.spills} instructions, for want of registers",
                )
            try:
                each = predict(launched, least, gpu, workload.dtype, self._measured)
            except ValueError as error:
                return Outcome(config=config, error=f"invalid: {error}")
            seconds += each.seconds
        return Outcome(config=config, seconds=(seconds,))
