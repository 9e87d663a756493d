"""Candidates built on this machine, several at once, each in a process that may fail."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
        self._idle = list(self._workers)
        self._pool = ThreadPoolExecutor(count)
        self._folder = tempfile.TemporaryDirectory(prefix="septune-")
        self._numbers = itertools.count()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    def submit(self, entry: Entry) -> Future[Candidate | Outcome]:
        """A library, or why there is none, once that is known; begun in the order of the calls."""
        return self._pool.submit(self._made, next(self._numbers), entry)

    def build(self, entries: Sequence[Entry]) -> Iterator[Candidate | Outcome]:
        """Of each entry, in their order, a library or why there is none, as soon as known."""
        futures = [self.submit(entry) for entry in entries]
        try:
            for future in futures:
                yield future.result()
        finally:
            wait([future for future in futures if not future.cancel()])

    def stop(self) -> None:
        """End the processes and remove what they built."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.interrupt()
        self._pool.shutdown()
        for worker in self._workers:
            worker.stop()
        self._folder.cleanup()

    def _made(self, number: int, entry: Entry) -> Candidate | Outcome:
        workload, name, config = entry.workload, entry.kernel, entry.config
        library = self.folder / f"{number}.so"
        worker = self._idle.pop()
        try:
            arguments = (workload, name, config, self._target, library)
            shapes = worker.call(build, *arguments, timeout_s=BUILD_TIMEOUT_S)
        except (WorkerError, WorkerCrash) as error:
            return Outcome(config=config, error=f"compile: {error}")
        except WorkerTimeout as error:
            return Outcome(config=config, error=f"timeout: compiler gave {error}")
        finally:
            self._idle.append(worker)
        return Candidate(
            workload=workload, kernel=name, config=config, library=library, shapes=shapes
        )
