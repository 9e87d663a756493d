"""One RPC session with a board, in a worker process that has no other. Runs in a worker.

The process may be killed at any moment: the board's server then ends the session and removes its
files. Until it has one of another place, the process keeps its session.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kernels import kernel
from kernels.reference import Array
from targets.target import Endpoint
from tune.profile import TEXT_BYTES
from tune.runners.candidate import Candidate
from tune.runners.handshake import NoServer
from tune.runners.protocol import Outcome
from tune.runners.samples import agree
from tune.runners.worker import essence
from tune.verify import case, difference

IDLE_LIMIT_S = 600  # between candidates; then the board is free for others
BIG_CORES = 1  # TVM's affinity mode: the cores of highest frequency first

# ELF machine numbers -> what a user calls it.
MACHINES = {0x03: "32-bit x86", 0x28: "32-bit arm", 0x3E: "x86-64", 0xB7: "aarch64", 0xF3: "riscv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How times are taken on a board; stored with them.

    repeat        samples of each candidate that count, its fastest
    most          turns at most; after `repeat`, another only while the samples of some candidate do
                  not agree, because something else ran
    min_repeat_s  how long a sample lasts at least, in calls without a pause
    """

    repeat: int = 5
    most: int = 15
    min_repeat_s: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A session to have.

    key      what the server, or the tracker for it, expects of us
    guard    library of guard.c for the board's kind of machine
    threads  TVM's threads there; None is one a core
    """

    endpoint: Endpoint
    key: str
    guard: Path
    threads: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a board says of itself."""

    cpuinfo: str
    cores: int


def open_session(place: Place) -> Facts:
    """Connect, and make the board ready for candidates. NoServer when it cannot be."""
    return session_at(place).facts


def run(place: Place, candidates: Sequence[Candidate], turns: Turns, limit_s: int) -> list[Outcome]:
    """Outcomes of candidates of one workload, checked, then timed in turn.

    limit_s  what each may take on the board, else it ends the session
    Raises when the session is lost, NoServer when the board is of no use.
    """
    session = session_at(place)
    session.limit(limit_s * len(candidates))
    played = [_Played(session, candidate) for candidate in candidates]
    for number in range(turns.most):
        if number >= turns.repeat and all(one.agrees(turns) for one in played):
            break
        for one in played:
            one.sample(turns)
    session.limit(IDLE_LIMIT_S)
    return [one.outcome(turns) for one in played]


def best_s(
    place: Place, library: Path, arrays: Sequence[Array], repeat: int, limit_s: int
) -> float:
    """The shortest time of `main` of the arrays. Raises as `run` does."""
    session = session_at(place)
    session.limit(limit_s)
    module = session.load(library)
    arguments = [session.tensor(array) for array in arrays]
    timer = module.time_evaluator("main", session.device, number=1, repeat=repeat)
    shortest = min(timer(*arguments).results)
    session.limit(IDLE_LIMIT_S)
    return float(shortest)


class Session:
    """A connected board, protected from what it will run."""

    def __init__(self, place: Place) -> None:
        from tvm import rpc

        self._endpoint = place.endpoint
        self._remote = rpc.connect(place.endpoint.host, place.endpoint.port, place.key)
        self.device = self._remote.cpu(0)
        self._guard = self._load_guard(place.guard)
        self.limit = self._guard["limit"]
        self.limit(IDLE_LIMIT_S)
        cores = int(self._guard["cores"]())
        threads = place.threads or cores
        # Before the pool of threads is made; it takes both, as `use_threads` does here.
        self._guard["protect"](threads)
        self._remote.get_function("runtime.config_threadpool")(BIG_CORES, threads)
        self.facts = Facts(cpuinfo=self.text("cpuinfo"), cores=cores)

    def load(self, library: Path) -> Any:
        """The library as a module of the board, where no file of it is left. NoServer if it cannot.

        A name is never used twice: overwriting a library that is still mapped ends the session.
        """
        name = f"septune-{uuid.uuid4().hex}.so"
        content = library.read_bytes()
        try:
            self._upload(name, content)
            return self._remote.load_module(name)
        finally:
            self._remote.remove(name)

    def tensor(self, array: Any) -> Any:
        """A copy in the board's memory."""
        import tvm

        return tvm.runtime.tensor(array, device=self.device)

    def trace(self, machine: Any) -> None:
        """From now on note which kernels a virtual machine of the board calls."""
        get = "ffi.ModuleGetFunction"  # by name: RPC passes modules, but no functions
        machine.module["set_instrument"](get, self._guard, "trace", False)

    def text(self, name: str) -> str:
        """What a function of the guard writes."""
        buffer = self.tensor(np.zeros(TEXT_BYTES, np.uint8))
        used = int(self._guard[name](buffer))
        text: bytes = buffer.numpy()[:used].tobytes()
        return text.decode()

    def ping(self) -> None:
        """Raises when the session is lost."""
        self._remote.get_function("tvm.rpc.server.remove")

    def _upload(self, name: str, content: bytes) -> None:
        """TVM writes what fits on the disk and does not tell, so the file is read back."""
        try:
            self._remote.upload(bytearray(content), name)
            stored = bytes(self._remote.download(name))
        except Exception as error:
            self.ping()
            raise self._full(name, content) from error
        if stored != content:
            raise self._full(name, content)

    def _full(self, name: str, content: bytes) -> NoServer:
        return NoServer(
            f"the board at {self._endpoint} cannot store {len(content)} bytes",
            "expected room in the temporary folder of its server; free some, or start it with "
            "another TMPDIR",
            lasting=True,
        )

    def _load_guard(self, library: Path) -> Any:
        try:
            return self.load(library)
        except NoServer:
            raise
        except Exception as error:
            ours = _machine(library.read_bytes())
            theirs = _machine(bytes(self._remote.download("/proc/self/exe")))
            if ours == theirs:
                raise NoServer(
                    f"the board at {self._endpoint} loads no library: {essence(str(error))}",
                    "expected glibc 2.28 or newer; update its system",
                    lasting=True,
                ) from error
            raise NoServer(
                f"the server at {self._endpoint} runs {theirs} code",
                f"expected {ours}; check its address, or choose another --target",
                lasting=True,
            ) from error


class _Played:
    """A candidate on the board, checked; later also timed."""

    def __init__(self, session: Session, candidate: Candidate) -> None:
        self._session = session
        self._config = candidate.config
        self._seconds: list[float] = []
        self._error: str | None = None
        self._guarded(self._check, candidate)

    def sample(self, turns: Turns) -> None:
        """One more time, of a candidate that is right."""
        self._guarded(self._time, turns)

    def agrees(self, turns: Turns) -> bool:
        """Whether it needs no more turns."""
        return self._error is not None or agree(self._fastest(turns))

    def outcome(self, turns: Turns) -> Outcome:
        return Outcome(
            config=self._config,
            seconds=self._fastest(turns) if self._error is None else (),
            error=self._error,
            checked=self._error is None,
        )

    def _guarded(self, step: Any, argument: Any) -> None:
        """Take a step if none has failed; its failure is the candidate's if the session lives."""
        if self._error is None:
            try:
                step(argument)
            except NoServer:
                raise
            except Exception as error:
                self._session.ping()
                self._error = f"run: {type(error).__name__}: {essence(str(error))}"

    def _check(self, candidate: Candidate) -> None:
        workload, session = candidate.workload, self._session
        x, weights, _ = case(workload)
        packed = kernel(candidate.kernel).pack(workload, candidate.config, weights)
        self._module = session.load(candidate.library)
        y = session.tensor(np.full(candidate.shapes[-1], np.nan, workload.dtype))
        x = session.tensor(x.reshape(candidate.shapes[0]))
        self._arguments = (x, *map(session.tensor, packed), y)
        self._module["main"](*self._arguments)
        wrong = difference(workload, y.numpy())
        self._error = f"wrong: {wrong}" if wrong else None

    def _fastest(self, turns: Turns) -> tuple[float, ...]:
        return tuple(sorted(self._seconds)[: turns.repeat])

    def _time(self, turns: Turns) -> None:
        min_repeat_ms = round(turns.min_repeat_s * 1e3)
        timer = self._module.time_evaluator(
            "main", self._session.device, number=1, repeat=1, min_repeat_ms=min_repeat_ms
        )
        self._seconds.extend(timer(*self._arguments).results)


@cache
def session_at(place: Place) -> Session:
    """The session of this process with a board there, begun when first asked for."""
    return Session(place)


def _machine(program: bytes) -> str:
    """What an ELF file runs on."""
    number = int.from_bytes(program[18:20], "little")
    return MACHINES.get(number, f"machine {number}")
