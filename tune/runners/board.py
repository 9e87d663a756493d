"""One board: its session in a process of ours, lost and found again."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from targets import machines
from targets.target import Endpoint, Target
from tune.runners.handshake import NoServer, Source, is_tracker, patiently
from tune.runners.session import Facts, Place, open_session
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a board.

    connect_s   for it to answer
    run_s       for one candidate to be checked and timed on it
    transfer_s  for what is sent to and fro beside that
    away_s      for it to come back when it was lost
    """

    connect_s: float = 10.0
    run_s: int = 30
    transfer_s: float = 30.0
    away_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The session ended before its answer.

    alive    the board accepts another at once: what it ran ended the session
    overdue  it had run for as long as it may
    """

    alive: bool
    overdue: bool


class Board:
    """Calls functions of `session` on whichever board a source has for us."""

    def __init__(
        self,
        source: Source,
        target: Target,
        guard: Path,
        threads: int | None,
        patience: Patience,
        notice: Callable[[str], None],
    ) -> None:
        self._source, self._target, self._patience, self._notice = source, target, patience, notice
        self._guard, self._threads = guard, threads
        self._worker = Worker()
        self._place: Place | None = None
        self._closing = threading.Event()

    @property
    def address(self) -> str | None:
        """Of the board that there is a session with."""
        return str(self._place.endpoint) if self._place else None

    def connect(self, within_s: float) -> Facts | None:
        """Begin a session, unless there is one. NoServer when none begins `within_s`.

        Returns what the board says of itself; None when there was a session.
        """
        if self._place is not None:
            return None
        return patiently(self._begin, within_s, self._closing.wait)

    def attempt(self, function: Callable[..., T], *arguments: Any, count: int = 1) -> T | Lost:
        """What `function(place, *arguments, limit)` returns there, or that the session was lost.

        count  candidates among the arguments. NoServer when the board refuses.
        """
        if self._place is None:
            return Lost(alive=False, overdue=False)
        endpoint, run_s, start = self._place.endpoint, self._patience.run_s, time.monotonic()
        timeout_s = count * (run_s + self._patience.transfer_s)
        try:
            return self._worker.call(function, self._place, *arguments, run_s, timeout_s=timeout_s)
        except (WorkerError, WorkerCrash, WorkerTimeout):
            self.disconnect()
            overdue = time.monotonic() - start >= count * run_s
            return Lost(alive=self._answers(endpoint), overdue=overdue)

    def disconnect(self) -> None:
        """End the session; the board's server removes what it stored."""
        self._worker.stop()
        self._place = None

    def close(self) -> None:
        """From another thread: end what is under way, and begin no session again."""
        self._closing.set()
        self._worker.interrupt()

    def _begin(self) -> Facts:
        endpoint, key = self._source.claim()
        self._place = Place(endpoint=endpoint, key=key, guard=self._guard, threads=self._threads)
        try:
            connect_s = self._patience.connect_s
            facts = self._worker.call(open_session, self._place, timeout_s=connect_s)
            self._check(endpoint, facts)
        except (WorkerError, WorkerCrash, WorkerTimeout) as error:
            self.disconnect()
            raise NoServer(
                f"the server at {endpoint} begins no session ({error})",
                "expected a tvm rpc server with our key; see its output, or choose another "
                "--rpc-key",
            ) from None
        except NoServer:
            self.disconnect()
            raise
        return facts

    def _check(self, endpoint: Endpoint, facts: Facts) -> None:
        """NoServer when the board cannot do the work; a notice when it is another than thought."""
        wanted, machine = self._target, machines(self._target.kind)
        with cpuinfo_file(facts) as path:
            able, same = machine.can_run(wanted, path), machine.is_core(wanted, path)
            try:
                found = machine.host(path).device
            except ValueError:
                found = "not known"
        if not able:
            raise NoServer(
                f"the core of the board at {endpoint} is {found}, and lacks instructions of "
                f"{wanted.device}",
                "expected a board that has them; choose another --device",
                lasting=True,
            )
        if self._threads and self._threads > facts.cores:
            raise NoServer(
                f"the board at {endpoint} has {facts.cores} cores",
                f"expected {self._threads}, one a thread; choose --threads {facts.cores}",
                lasting=True,
            )
        if not same:
            self._notice(
                f"the core of the board at {endpoint} is {found}; expected {wanted.device}, which "
                f"records will name; choose another --device unless that is meant"
            )

    def _answers(self, endpoint: Endpoint) -> bool:
        """Whether a server accepts a connection there."""
        try:
            return not self._closing.is_set() and not is_tracker(endpoint, self._patience.connect_s)
        except NoServer:
            return False


@contextmanager
def cpuinfo_file(facts: Facts) -> Iterator[Path]:
    """A file as the board's /proc/cpuinfo, for functions of `targets`."""
    with tempfile.NamedTemporaryFile("w", suffix=".cpuinfo") as file:
        file.write(facts.cpuinfo)
        file.flush()
        yield Path(file.name)
