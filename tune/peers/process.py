"""A contender's process, seen from the side that asks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# Left at the libraries' own defaults, whatever the caller's shell says.
SETTINGS = ("OMP_", "GOMP_", "KMP_", "MKL_", "TVM_", "ONEDNN_", "DNNL_", "ORT_", "OV_")


class PeerFailed(Exception):
    """No answer from a contender; the message says why."""


class PeerLate(PeerFailed):
    """No answer in time."""


class Process:
    """A process of `tune.peers.worker`; a context manager that ends it.

    What libraries print goes to a file: it cannot corrupt the channel, and its last line is part
    of the reason when the process dies.
    """

    def __init__(self, threads: int, python: Sequence[str] = (sys.executable,)) -> None:
        """`python` is the interpreter's command line; its module search path must reach us."""
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 closed in close
        self._channel, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [*python, "-m", "tune.peers.worker", str(theirs.fileno())],
                env=environment(threads),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a compiler it has started ends with it
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._channel.close()
        self._printed.close()

    def ask(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What `method` of the worker's seat returns; PeerFailed when it does not, or too late."""
        self.tell(method, *arguments)
        return self.answer(timeout_s)

    def tell(self, method: str, *arguments: Any) -> None:
        """Let the worker begin; PeerFailed when it has ended."""
        self._told = method, time.monotonic()
        try:
            self._channel.send((method, arguments))
        except OSError:
            raise PeerFailed(f"its process ended with {self._end()}") from None

    def answer(self, timeout_s: float) -> Any:
        """What `ask` returns, of what the worker was told; late so long after it was."""
        method, told_s = self._told
        try:
            if not self._channel.poll(max(0.0, told_s + timeout_s - time.monotonic())):
                raise PeerLate(f"no answer to {method} after {timeout_s:g} s")
            done, value = self._channel.recv()
        except (EOFError, OSError):
            raise PeerFailed(f"its process ended with {self._end()}") from None
        if not done:
            raise PeerFailed(value)
        return value

    def _end(self) -> str:
        """Exit status or signal, and the last line printed."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "no status"
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), None)
        return f"{how}: {last[:300]}" if last else how


def environment(threads: int) -> dict[str, str]:
    """Ours, with `threads` for every pool that is sized before a library's first call."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    path = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")
    return kept | dict.fromkeys(pools, str(threads)) | {"PYTHONPATH": os.pathsep.join(path)}
