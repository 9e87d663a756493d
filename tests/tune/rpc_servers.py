"""TVM's own RPC server and tracker as processes that start in milliseconds and can be killed.

They are forked from a process that has imported TVM; `python -m tvm.exec.rpc_server` runs the same
code after seconds of imports.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import socket
import time
from multiprocessing.connection import Connection
from typing import Any

from targets.target import Endpoint

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A listening process and all that it starts."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.endpoint = Endpoint(host=HOST, port=free_port())
        self.start()

    def start(self) -> None:
        """Listen, at the same address as before."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._started():  # a passing connection may have our port as its own
            assert time.monotonic() < deadline, "the server did not start"

    def _started(self) -> bool:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tune.runners.preload"])
        ours, theirs = context.Pipe()
        arguments = (theirs, self.endpoint.port, self._options)
        self._process = context.Process(target=self.serve, args=arguments)
        self._process.start()
        theirs.close()
        assert ours.poll(START_TIMEOUT_S), "the server did not start"
        try:
            return bool(ours.recv() == self.endpoint.port)
        except EOFError:
            self._process.join()
            return False

    def signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process.is_alive():
            self.signal(signal.SIGKILL)
        self._process.join()

    @staticmethod
    def serve(ready: Connection, port: int, options: dict[str, Any]) -> None:
        raise NotImplementedError


class Server(Process):
    """options: tracker (Endpoint), key, file_bytes (as if the disk had no more room)."""

    @staticmethod
    def serve(ready: Connection, port: int, options: dict[str, Any]) -> None:
        os.setsid()
        multiprocessing.set_start_method("fork", force=True)  # of sessions, as in a fresh process
        if "file_bytes" in options:
            resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_bytes"],) * 2)
        from tvm.rpc.server import PopenRPCServerState

        tracker = options.get("tracker")
        state = PopenRPCServerState(
            HOST,
            port,
            port + 1,
            key=options.get("key", ""),
            tracker_addr=tracker and (tracker.host, tracker.port),
            silent=True,
        )
        ready.send(state.port)
        state.thread.join()


class TrackerProcess(Process):
    @staticmethod
    def serve(ready: Connection, port: int, options: dict[str, Any]) -> None:
        os.setsid()
        from tvm.rpc.tracker import PopenTrackerServerState

        state = PopenTrackerServerState(HOST, port, port + 1, silent=True)
        ready.send(state.port)
        state.thread.join()
