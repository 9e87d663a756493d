"""Candidates for aarch64, judged by the instructions they execute: no board, no clock, no noise.

Each is built here, called under QEMU and checked against the reference like any other. Counts are
exact, so that candidates may run side by side, and one call says it all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from kernels import kernel
from kernels.space import Config
from kernels.workload import Workload
from targets.target import Target
from tune.builder import build, linker
from tune.emulator.guest import guest
from tune.emulator.instrument import CALLS, GuestFailed, GuestTimeout, instrument
from tune.runners.protocol import Entry, Outcome
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout
from tune.verify import case, difference

ESTIMATOR = "instructions"

# A record's seconds say how many: one instruction a cycle at 1 GHz is a unit, not a prediction.
INSTRUCTIONS_PER_S = 1e9

BUILD_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How instructions are counted; stored with them. Of `calls`, the last one counts."""

    calls: int = CALLS


class InstructionRunner:
    """Builds and counts `workers` candidates at a time, each on one emulated thread."""

    trial = Protocol()
    final = Protocol()
    threads = 1

    def __init__(self, target: Target, workers: int) -> None:
        """SetupError when the emulator, its packages or a compiler cannot be had."""
        self._target = target
        self._instrument = instrument(guest(), linker(target))
        self._workers = [Worker() for _ in range(workers)]
        self._folder = tempfile.TemporaryDirectory(prefix="septune-")

    def __enter__(self) -> InstructionRunner:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._folder.cleanup()

    def peak_flops(self) -> float:
        """When every instruction is a multiply-add of a whole vector."""
        return 2 * self._target.limits.lanes("float32") * INSTRUCTIONS_PER_S

    def measure(
        self, workload: Workload, kernel: str, configs: Sequence[Config]
    ) -> Iterator[Outcome]:
        """One outcome a config, in their order; its one sample is the count in nominal seconds."""
        case(workload)  # once, before all threads ask for it
        idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def judge(number: int, config: Config) -> Outcome:
            worker = idle.get()
            library = Path(self._folder.name) / f"{number}.so"
            try:
                return self._judge(worker, workload, kernel, config, library)
            finally:
                library.unlink(missing_ok=True)
                idle.put(worker)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            yield from pool.map(judge, range(len(configs)), configs)

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        """None: what was counted once is known."""
        return []

    def _judge(
        self, worker: Worker, workload: Workload, name: str, config: Config, library: Path
    ) -> Outcome:
        """Build, call, compare, count."""
        try:
            shapes = worker.call(
                build, workload, name, config, self._target, library, timeout_s=BUILD_TIMEOUT_S
            )
        except (WorkerError, WorkerCrash) as error:
            return Outcome(config=config, error=f"compile: {error}")
        except WorkerTimeout as error:
            return Outcome(config=config, error=f"timeout: compiler gave {error}")
        x, wt, bias, _ = case(workload)
        packed = kernel(name).pack(workload, config, wt, bias)
        y = np.full(shapes[-1], np.nan, np.float32)
        try:
            count = self._instrument.kernel(
                library, [x.reshape(shapes[0]), *packed, y], timeout_s=RUN_TIMEOUT_S
            )
        except GuestFailed as error:
            return Outcome(config=config, error=f"run: {error}")
        except GuestTimeout as error:
            return Outcome(config=config, error=f"timeout: {error}")
        wrong = difference(workload, count.y)
        if wrong:
            return Outcome(config=config, error=f"wrong: {wrong}")
        nominal_s = count.instructions / INSTRUCTIONS_PER_S
        return Outcome(config=config, seconds=(nominal_s,), checked=True)
