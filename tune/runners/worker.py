"""A process that may crash, hang or lie without harm to whoever asked it.

Processes are forked from a server that has imported TVM once and never started a thread of it, so
that a new one is ready in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tune.runtime import use_threads

T = TypeVar("T")


class WorkerError(Exception):
    """The function raised: its error's type and message."""


class Passed(Exception):
    """Base of errors that a function's caller meets as they were raised."""


class WorkerCrash(Exception):
    """The process died in the middle of a call."""


class WorkerTimeout(Exception):
    """No answer came in time; the process was killed."""


class Worker:
    """One such process, started when first called, and again after it died.

    threads  TVM's threads in it
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._process: Any = None
        self._pipe: Connection | None = None

    def call(self, function: Callable[..., T], *arguments: Any, timeout_s: float) -> T:
        """What `function`, of a module's top level, returns there.

        WorkerError, WorkerCrash, WorkerTimeout or what is `Passed` otherwise.
        """
        pipe = self._started()
        try:
            pipe.send((function, arguments))
            if not pipe.poll(timeout_s):
                self.stop()
                raise WorkerTimeout(f"no answer after {timeout_s:g} s")
            done, value = pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(1)
            status = self._process.exitcode
            self.stop()
            raise WorkerCrash(f"worker process ended with status {status}") from None
        if not done:
            raise value if isinstance(value, Passed) else WorkerError(value)
        result: T = value
        return result

    def interrupt(self) -> None:
        """Kill the process from another thread: a call that is under way ends as WorkerCrash."""
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["tune.runners.preload"])
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, self._threads), daemon=True
            )
            self._process.start()
            theirs.close()
        return self._pipe


def _serve(pipe: Connection, threads: int) -> None:
    """Answer calls until the pipe closes. Ctrl-C in a terminal means whoever asks, and ends it."""
    signal.signal(signal.SIGINT, lambda *_: None)
    use_threads(threads)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Passed as error:
            answer = (False, error)
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {essence(str(error))}")
        pipe.send(answer)


def failure(error: Exception) -> str:
    """What a candidate's outcome says of a call that ended so."""
    kind = "timeout" if isinstance(error, WorkerTimeout) else "run"
    return f"{kind}: {error}"


def essence(message: str) -> str:
    """The last line of a message that says something; TVM prints whole programs before it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def elsewhere(function: Callable[..., T], *arguments: Any, timeout_s: float) -> T:
    """What `function` returns in a process of its own."""
    worker = Worker()
    try:
        return worker.call(function, *arguments, timeout_s=timeout_s)
    finally:
        worker.stop()
