"""What listens at an address, and which boards a tracker has: asked with time limits, by socket.

TVM's own client waits for ever for a server that accepts a connection and says nothing.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from tvm.rpc import base

from targets.target import Endpoint
from tune.runners.worker import Passed

T = TypeVar("T")

FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 5.0
CLAIM_S = 1.0  # a tracker without a free board keeps a request open; ours are short and repeated


class NoServer(Passed):
    """No server can be worked with; as text, a message for users.

    what     the matter
    remedy   what was expected, and what to do
    lasting  trying again will not help
    """

    def __init__(self, what: str, remedy: str, *, lasting: bool = False) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy, self.lasting = what, remedy, lasting

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def patiently(step: Callable[[], T], within_s: float, wait: Callable[[float], object]) -> T:
    """What `step` returns, tried with growing pauses as long as it raises NoServer.

    wait  sleeps; what it returns is true when there is no point any more
    NoServer when that lasts, or `within_s` have passed.
    """
    deadline, pause_s = time.monotonic() + within_s, FIRST_PAUSE_S
    while True:
        try:
            return step()
        except NoServer as error:
            if error.lasting or wait(pause_s):
                raise
            if time.monotonic() > deadline:
                raise NoServer(f"{error.what} after {within_s:g} s", error.remedy) from None
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


class Source(Protocol):
    """Where boards come from."""

    def boards(self) -> int:
        """How many there are now."""
        ...

    def claim(self) -> tuple[Endpoint, str]:
        """Address and key of one that is free. NoServer when there is none."""
        ...


class Direct:
    """One board, by its address."""

    def __init__(self, endpoint: Endpoint, key: str, timeout_s: float) -> None:
        self._endpoint, self._key, self._timeout_s = endpoint, key, timeout_s

    def boards(self) -> int:
        return 1

    def claim(self) -> tuple[Endpoint, str]:
        is_tracker(self._endpoint, self._timeout_s)
        return self._endpoint, self._key


class Tracker:
    """All boards that serve one key at a tracker."""

    def __init__(self, endpoint: Endpoint, key: str, timeout_s: float) -> None:
        self._endpoint, self._key, self._timeout_s = endpoint, key, timeout_s

    def keys(self) -> list[str]:
        """The key of each board that is connected to the tracker."""
        _, summary = self._ask([base.TrackerCode.SUMMARY], self._timeout_s)
        return [entry["key"].removeprefix("server:") for entry in summary["server_info"]]

    def boards(self) -> int:
        return self.keys().count(self._key)

    def claim(self) -> tuple[Endpoint, str]:
        try:
            _, found = self._ask([base.TrackerCode.REQUEST, self._key, "", 1], CLAIM_S)
        except TimeoutError:
            raise NoServer(
                f"no free board serves {self._key!r} at the tracker {self._endpoint}",
                f"expected one; start one: python -m tvm.exec.rpc_server "
                f"--tracker {self._endpoint} --key {self._key}",
            ) from None
        host, port, match_key = found
        return Endpoint(host=host, port=port), match_key

    def _ask(self, message: Sequence[Any], timeout_s: float) -> Any:
        """The tracker's answer. TimeoutError when there is none in time, NoServer without it."""
        try:
            with _connection(self._endpoint, self._timeout_s) as link:
                link.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
                base.recvall(link, 4)
                link.settimeout(timeout_s)
                base.sendjson(link, message)
                return base.recvjson(link)
        except TimeoutError:
            raise
        except OSError as error:
            raise NoServer(
                f"the tracker {self._endpoint} went away ({error})",
                f"expected its answer; start it again: python -m tvm.exec.rpc_tracker "
                f"--port {self._endpoint.port}",
            ) from None


def is_tracker(endpoint: Endpoint, timeout_s: float) -> bool:
    """Whether a tracker listens there, rather than a server. NoServer when neither does.

    A server hangs up at once on the tracker's greeting, which a tracker returns.
    """
    try:
        with _connection(endpoint, timeout_s) as link:
            link.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            link.shutdown(socket.SHUT_WR)  # who waits for more, such as a web server, answers now
            answer = link.recv(64)
    except TimeoutError:
        raise NoServer(
            f"what listens at {endpoint} says nothing",
            "expected a tvm rpc server that is free; let its other session end, or start the "
            "server again",
        ) from None
    except OSError:
        raise NoServer(
            f"what listens at {endpoint} hangs up",
            "expected a tvm rpc server or tracker; check the port, or start the server again",
        ) from None
    if answer and answer != struct.pack("<i", base.RPC_TRACKER_MAGIC):
        raise NoServer(
            f"what listens at {endpoint} answers {answer[:16]!r}",
            "expected a tvm rpc server or tracker; check the port",
            lasting=True,
        )
    return bool(answer)


def _connection(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    """An open connection with that time limit. NoServer when there is none."""
    try:
        link = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
        if link.getsockname() == link.getpeername():  # where nobody listens, TCP may meet itself
            link.close()
            raise ConnectionRefusedError
        return link
    except socket.gaierror as error:
        raise NoServer(
            f"no machine is called {endpoint.host!r} ({error.strerror})",
            "expected a name or an address on the network; check it, or use the address",
            lasting=True,
        ) from None
    except OSError:
        raise NoServer(
            f"no device answers at {endpoint}",
            f"expected a tvm rpc server; start one: {_server_command(endpoint.port)}",
        ) from None


def _server_command(port: int) -> str:
    """How to start a server there; by default it looks for a free port below 9199 only."""
    end = "" if port < 9199 else f" --port-end {port + 1}"
    return f"python -m tvm.exec.rpc_server --port {port}{end}"
