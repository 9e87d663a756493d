"""An emulated board: TVM's RPC server in an aarch64 system under QEMU, on loopback.

It takes what a board takes (cross-compiled libraries, uploads, remote calls) and says what is right
or wrong about them. Its times say nothing.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tune.emulator.cache import cache
from tune.emulator.guest import guest
from tune.errors import SetupError, UsageError
from tune.printed import last_line

HOST = "127.0.0.1"
PORT = 9090
START_TIMEOUT_S = 90.0
SERVER = Path(__file__).parent / "emulator" / "serve.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """The board of one port. pid is its process, None while it is off; log is what it printed."""

    port: int
    pid: int | None
    log: Path

    @property
    def address(self) -> str:
        """As --rpc takes it."""
        return f"{HOST}:{self.port}"


def start(port: int = PORT, progress: Callable[[str], None] = lambda _: None) -> Board:
    """The board of `port`, switched on and answering; set up first where that was not done before.

    SetupError when something is missing or the server dies; UsageError when another program has
    the port.
    """
    board = status(port)
    if board.pid is not None:
        return board
    system = guest(progress)
    if _answers(port):
        raise UsageError(
            f"port {port} is in use by another program; expected a free one; choose another --port"
        )
    folder = _folder(port)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    progress(f"starting the server at {board.address}")
    with board.log.open("w") as log:
        process = subprocess.Popen(
            system.python(SERVER, HOST, str(port)),
            cwd=folder / "tmp",
            env=os.environ | {"TMPDIR": str(folder / "tmp")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it outlives this program, and ends with its children
        )
    (folder / "pid").write_text(str(process.pid))
    _await_answer(process, board)
    return status(port)


def stop(port: int = PORT) -> Board:
    """The board of `port`, switched off; what was uploaded to it is gone."""
    board = status(port)
    if board.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(board.pid, signal.SIGKILL)
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            psutil.Process(board.pid).wait(timeout=10)
    shutil.rmtree(_folder(port) / "tmp", ignore_errors=True)
    (_folder(port) / "pid").unlink(missing_ok=True)
    return status(port)


def status(port: int = PORT) -> Board:
    """The board of `port` as it is now."""
    folder = _folder(port)
    try:
        pid = int((folder / "pid").read_text())
        process = psutil.Process(pid)
        ours = {str(SERVER), str(port)} <= set(process.cmdline())  # the number may be another's now
        alive = ours and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, psutil.Error):
        alive = False
    return Board(port=port, pid=pid if alive else None, log=folder / "log")


def _await_answer(process: subprocess.Popen[bytes], board: Board) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(board.port):
        if process.poll() is not None or time.monotonic() > deadline:
            stop(board.port)
            last = last_line(board.log.read_text(errors="replace"), "no output")
            raise SetupError(
                f"the emulated server does not answer at {board.address}: {last}; "
                f"expected it within {START_TIMEOUT_S:g} s; see {board.log}"
            )
        time.sleep(0.1)


def _answers(port: int) -> bool:
    """Whether somebody listens."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def _folder(port: int) -> Path:
    return cache() / "boards" / str(port)
