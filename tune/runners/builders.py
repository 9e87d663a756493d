"""Candidates built on this machine, several at once, each in a process that may fail."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from targets.target import Target
from tune.builder import build
from tune.runners.candidate import Candidate
from tune.runners.protocol import Entry, Outcome
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

BUILD_TIMEOUT_S = 30.0


class Builders:
    """Worker processes that build, and the folder that libraries lie in until `stop`."""

    def __init__(self, target: Target, count: int) -> None:
        self._target = target
        self._workers = [Worker() for _ in range(count)]
        self._folder = tempfile.TemporaryDirectory(prefix="septune-")
        self._built = 0

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def build(self, entries: Sequence[Entry]) -> Generator[Candidate | Outcome]:
        """Of each entry, in their order, a library or why there is none, as soon as known."""
        idle = list(self._workers)

        def make(number: int, entry: Entry) -> Candidate | Outcome:
            workload, name, config = entry.workload, entry.kernel, entry.config
            library = self.folder / f"{number}.so"
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

        numbers = range(self._built, self._built + len(entries))
        self._built += len(entries)
        with ThreadPoolExecutor(len(self._workers)) as pool:
            try:
                yield from pool.map(make, numbers, entries)
            finally:
                pool.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """End the processes and remove what they built."""
        for worker in self._workers:
            worker.stop()
        self._folder.cleanup()
