"""The process of one contender: `python -m tune.peers.worker FD`.

It is asked over the socket FD, answers each request with (done, value or reason), waits in a
blocking read in between, and ends when the other side closes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from tune.emulator import MARK
from tune.peers import Array, Contender, Job, Peer

REST_STEP_S, REST_LIMIT_S = 0.01, 1.0


def main() -> None:
    seat = Seat()
    with Connection(int(sys.argv[1])) as channel:
        while True:
            try:
                method, arguments = channel.recv()
            except EOFError:
                return
            try:
                answer: tuple[bool, Any] = (True, getattr(seat, method)(*arguments))
            except Exception as error:
                answer = (False, _reason(error))
            channel.send(answer)


class Seat:
    """What may be asked of a contender: to be prepared once, then the others as often as wanted."""

    _module: Any
    _contender: Contender
    _x: Array

    def prepare(self, peer: Peer, job: Job) -> tuple[str, Array]:
        """As `load` and `ready` one after the other."""
        self.load(peer, job)
        return self.ready()

    def load(self, peer: Peer, job: Job) -> None:
        """Import the peer's library and give it the network; nothing is chosen by the clock."""
        for package in peer.packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"{package} is not installed; expected it for this peer; "
                    f"run: pip install -e '.[peers]'"
                )
        self._module = import_module(peer.module)
        self._contender = self._module.prepare(job)
        self._x = job.x

    def ready(self) -> tuple[str, Array]:
        """The version of the peer's library and the logits (N, classes) it gives for the images.

        Whoever tries several ways to compute, and times them, does it here.
        """
        self._contender.bind(self._x)
        del self._x
        return self._module.version(), self._contender.logits(self._contender.run())

    def burst(self, warmup: int, min_s: float) -> list[float]:
        """Seconds of each call, after `warmup` calls, until they add up to `min_s`.

        On the GPU by its own clock, each call from an idle stream until it is idle again. Then it
        rests, so that it disturbs nobody: pools of threads spin before they sleep.
        """
        run = self._contender.run
        seconds = _stopwatch(self._contender)
        for _ in range(warmup):
            run()
        samples: list[float] = []
        total_s = 0.0
        while total_s < min_s:
            samples.append(seconds(run))
            total_s += samples[-1]
        rest()
        return samples

    def mark(self, calls: int) -> None:
        """Call so often, marking for the instruction counter before the first and after each."""
        _mark()
        for _ in range(calls):
            self._contender.run()
            _mark()


def rest() -> None:
    """Return when all threads of this process sleep, or some never will.

    ONNX Runtime's spin for 30 ms of CPU time each, TVM's by its own default for 100
    (sapphirerapids, 2 threads, 2026-11-28).
    """
    deadline = time.monotonic() + REST_LIMIT_S
    awake = True
    while awake and time.monotonic() < deadline:
        before = time.process_time()
        time.sleep(REST_STEP_S)
        awake = time.process_time() - before > REST_STEP_S / 5


def _stopwatch(contender: Contender) -> Callable[[Callable[[], Any]], float]:
    """What tells how long a call takes."""
    stream = getattr(contender, "stream", None)
    if stream is not None:
        from tune.cuda import Stopwatch

        return Stopwatch(stream).seconds

    def seconds(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return seconds


def _mark() -> None:
    with suppress(OSError):
        os.getpriority(MARK, 0)


def _reason(error: Exception) -> str:
    """The error's type and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


if __name__ == "__main__":
    main()
