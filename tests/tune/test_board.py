"""The emulated board: one command away, as strict as a real one, and not felled by a candidate."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tvm
import tvm_ffi
from tvm import rpc

from kernels import kernel
from kernels.workload import Pointwise
from targets import arm64
from tune import board
from tune.board import Board
from tune.builder import build
from tune.emulator import qemu
from tune.errors import SetupError, UsageError
from tune.verify import case, difference

WORKLOAD = Pointwise(N=1, H=7, W=7, Ci=32, Co=32)
CRASH = "int __tvm_ffi_main(void) { return *(volatile int *)0; }"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((board.HOST, 0))
        return int(probe.getsockname()[1])


def require() -> None:
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"the emulated board needs {qemu.PROGRAM}")


@pytest.fixture(scope="module")
def running() -> Iterator[Board]:
    require()
    port = free_port()
    yield board.start(port)
    board.stop(port)


def session(of: Board) -> rpc.RPCSession:
    return rpc.connect(board.HOST, of.port, session_timeout=60)


def test_a_candidate_computes_there_what_it_computes_here(running: Board, tmp_path: Path) -> None:
    target = arm64.DEVICES["cortex-a76"]
    pointwise = kernel("te.pointwise")
    config = pointwise.space(WORKLOAD, target).default
    library = tmp_path / "candidate.so"
    shapes = build(WORKLOAD, "te.pointwise", config, target, library)
    x, weights, _ = case(WORKLOAD)
    remote = session(running)
    remote.upload(str(library))
    packed = pointwise.pack(WORKLOAD, config, weights)
    arguments = [x.reshape(shapes[0]), *packed, np.full(shapes[-1], np.nan, np.float32)]
    tensors = [tvm.runtime.tensor(argument, remote.cpu(0)) for argument in arguments]
    remote.load_module(library.name)["main"](*tensors)
    assert difference(WORKLOAD, tensors[-1].numpy()) is None


def test_the_board_outlives_a_candidate_that_crashes(running: Board, tmp_path: Path) -> None:
    library = tmp_path / "crash.so"
    command = [*(arm64.linker() or ()), "-x", "c", "-", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run(command, input=CRASH.encode(), check=True)
    for _ in range(2):
        remote = session(running)
        remote.upload(str(library))
        crashing = remote.load_module(library.name)["main"]
        with pytest.raises(tvm.error.InternalError):
            crashing()
    assert session(running).get_function("runtime.NumThreads")() > 0
    assert board.status(running.port).pid == running.pid
    assert not list(running.log.parent.rglob("*.core"))


def test_an_x86_library_is_refused_as_by_any_board(running: Board) -> None:
    remote = session(running)
    remote.upload(tvm_ffi.libinfo.find_libtvm_ffi(), "x86.so")
    with pytest.raises(Exception, match=r"x86\.so"):
        remote.load_module("x86.so")


def test_starting_twice_is_starting_once(running: Board) -> None:
    assert board.start(running.port) == board.status(running.port) == running
    assert running.address == f"127.0.0.1:{running.port}"


def test_a_board_that_was_killed_can_be_started_again() -> None:
    require()
    first = board.start(free_port())
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    psutil.Process(first.pid).wait()
    assert board.status(first.port).pid is None
    second = board.start(first.port)
    assert second.pid not in (None, first.pid)
    assert board.stop(second.port).pid is None
    assert not psutil.pid_exists(second.pid or 0)


def test_what_was_never_started_is_off() -> None:
    port = free_port()
    assert board.status(port).pid is None
    assert board.stop(port).pid is None


def test_a_pid_that_another_program_has_now_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "septune" / "boards" / "9090"
    folder.mkdir(parents=True)
    for content in (str(os.getpid()), "torn", ""):
        (folder / "pid").write_text(content)
        assert board.status().pid is None
    board.stop()  # and we are still here


def test_a_port_in_use_is_told() -> None:
    require()
    with socket.create_server((board.HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use by another program"):
            board.start(port)


def test_a_server_that_dies_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require()
    script = tmp_path / "serve.py"
    script.write_text("raise OSError('no more sockets')")
    monkeypatch.setattr(board, "SERVER", script)
    with pytest.raises(SetupError, match="OSError: no more sockets"):
        board.start(free_port())
