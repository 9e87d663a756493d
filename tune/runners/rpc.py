"""Candidates built here and measured on boards, over TVM's RPC.

Timing   each candidate alone, by the board's own clock, with one set of weights: unlike on this
         machine, a set that fits the board's caches is found there at every call.
Threads  each session makes its pool anew with as many as asked for, on the cores of highest
         frequency first; the server needs no variable set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kernels.reference import Array
from kernels.te import peak
from targets import machines
from targets.target import Endpoint, Target
from tune.builder import export
from tune.errors import GateError, SetupError, UsageError
from tune.profile import Bursts, Trace
from tune.runners.board import Board, Lost, Patience, cpuinfo_file
from tune.runners.builders import BUILD_TIMEOUT_S, Builders
from tune.runners.candidate import Candidate
from tune.runners.guard import build_guard
from tune.runners.handshake import Direct, NoServer, Source, Tracker, is_tracker, patiently
from tune.runners.lanes import LOSSES, share
from tune.runners.meeting import together
from tune.runners.network import infer, trace
from tune.runners.protocol import Entry, Outcome
from tune.runners.session import Facts, Turns, best_s, run
from tune.runners.worker import Worker

T = TypeVar("T")

TRIAL = Turns()
FINAL = Turns(repeat=15, most=45)
PEAK_REPEAT = 5
KEPT = "; every finished record is in the log, so repeat the command to go on"


class RpcRunner:
    """Measures on the board at `endpoint`, or on all that serve `key` if a tracker listens there.

    threads  TVM's threads on a board; None is one a core of the first board
    notice   called with a line when a board is lost, dropped, or another than thought
    SetupError when no board can be worked with, at once or later; UsageError without a key.
    """

    trial = TRIAL
    final = FINAL
    fuses = True

    def __init__(
        self,
        target: Target,
        endpoint: Endpoint,
        *,
        key: str = "",
        threads: int | None = None,
        builders: int = 1,
        patience: Patience | None = None,
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._target, self._patience = target, patience or Patience()
        self._notice, self._noticed = notice, set[str]()
        self._threads, self.at_once = threads, builders
        self._builders = Builders(target, builders)
        self._guard = self._builders.folder / "guard.so"
        try:
            build_guard(target, self._guard)
            self._source = self._find(endpoint, key)
            self.facts = self._first_facts()
        except BaseException:
            self._builders.stop()
            raise
        self._threads = threads or self.facts.cores

    def __enter__(self) -> RpcRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._builders.stop()

    @property
    def threads(self) -> int:
        """TVM's threads on a board."""
        return self._threads or self.facts.cores

    def peak_flops(self, dtype: str) -> float:
        """What a board's vector units can do on these threads, FLOP/s."""
        library, builder = self._builders.folder / "peak.so", Worker()
        arguments = (self._target, dtype, self.threads, library)
        try:
            arrays = builder.call(build_peak, *arguments, timeout_s=BUILD_TIMEOUT_S)
        finally:
            builder.stop()
        best = self._on_one_board(best_s, library, arrays, PEAK_REPEAT)
        if isinstance(best, Lost):
            raise SetupError(
                "the board is lost whenever it runs the multiply-add loop; expected its time; "
                "see the server's output"
            )
        return peak.flops(self._target, dtype, self.threads) / best

    def memory_bytes_per_s(self) -> None:
        """Not told."""

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Each entry and its outcome, as boards deliver them.

        SetupError when the last board is gone.
        """
        for number, outcome in self._share(self._builders.build(entries), len(entries), TRIAL):
            yield entries[number], outcome

    def expect(self, rivals: Iterable[Entry]) -> None:
        """Nothing: each meeting builds its own."""

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        """One outcome a rival, in their order, timed alone, in turns on one board.

        network  is for runners that time a rival among its other layers
        """

        def meet(rivals: Sequence[Candidate]) -> list[Outcome]:
            met = self._on_one_board(run, rivals, FINAL, count=len(rivals))
            if not isinstance(met, Lost):
                return met
            alone = self._share(iter(rivals), len(rivals), FINAL)  # lost by one of them
            return [outcome for _, outcome in sorted(alone, key=lambda pair: pair[0])]

        return together(meet, list(self._builders.build(rivals)))

    def infer(
        self, library: Path, image: Array, repeat: int = 0
    ) -> tuple[Array, tuple[float, ...]]:
        """Logits of a whole network for `image`, and seconds of `repeat` more inferences."""
        return self._whole(library, infer, image, repeat, count=1 + repeat // 10)

    def trace(self, library: Path, images: Array, bursts: Bursts) -> Trace:
        """Seconds of whole inferences of a network, and of its kernels."""
        return self._whole(library, trace, images, bursts, count=1 + bursts.inferences // 2)

    def _whole(self, library: Path, function: Callable[..., T], *arguments: Any, count: int) -> T:
        """What a function of `network` returns. GateError when it never does."""
        answer = self._on_one_board(function, library, *arguments, count=count)
        if isinstance(answer, Lost):
            raise GateError(
                f"the board is lost whenever it runs {library}; expected at most "
                f"{self._patience.run_s:g} s an inference; see the server's output"
            )
        return answer

    def _share(
        self, built: Iterator[Candidate | Outcome], count: int, turns: Turns
    ) -> Iterator[tuple[int, Outcome]]:
        """Outcomes of all boards that there are now."""
        try:
            boards = [self._board() for _ in range(max(1, self._source.boards()))]
            away_s = self._patience.away_s
            yield from share(built, count, boards, turns, away_s=away_s, notice=self._say)
        except NoServer as error:
            raise SetupError(f"{error}{KEPT}") from None

    def _on_one_board(
        self, function: Callable[..., T], *arguments: Any, count: int = 1
    ) -> T | Lost:
        """What a function of `session` or `network` returns on whichever board is free."""
        board = self._board()
        answer: T | Lost = Lost(alive=False, overdue=False)
        try:
            for _ in range(LOSSES):
                board.connect(self._patience.away_s)
                answer = board.attempt(function, *arguments, count=count)
                if not isinstance(answer, Lost):
                    break
        except NoServer as error:
            raise SetupError(f"{error}{KEPT}") from None
        finally:
            board.disconnect()
        return answer

    def _find(self, endpoint: Endpoint, key: str) -> Source:
        """Boards by what listens there."""
        timeout_s = self._patience.connect_s
        try:
            if not patiently(lambda: is_tracker(endpoint, timeout_s), timeout_s, time.sleep):
                return Direct(endpoint, key, timeout_s)
            tracker = Tracker(endpoint, key, timeout_s)
            keys = sorted(set(tracker.keys()))
        except NoServer as error:
            raise SetupError(str(error)) from None
        if not key:
            raise UsageError(
                f"a tracker listens at {endpoint}, with boards of {len(keys)} keys; expected one "
                f"of {', '.join(keys) or 'none'}; choose it with --rpc-key"
            )
        if key not in keys:
            raise SetupError(
                f"no board serves {key!r} at the tracker {endpoint}; expected one of "
                f"{', '.join(keys) or 'none'}; start one: python -m tvm.exec.rpc_server "
                f"--tracker {endpoint} --key {key}"
            )
        return tracker

    def _first_facts(self) -> Facts:
        """What the first board says of itself. SetupError when it cannot be worked with."""
        board = self._board()
        try:
            facts = board.connect(self._patience.connect_s)
        except NoServer as error:
            raise SetupError(str(error)) from None
        finally:
            board.disconnect()
        assert facts is not None, "a new board has no session yet"
        return facts

    def _board(self) -> Board:
        return Board(
            self._source, self._target, self._guard, self._threads, self._patience, self._say
        )

    def _say(self, line: str) -> None:
        """Each line once: boards introduce themselves again in every session."""
        if line not in self._noticed:
            self._noticed.add(line)
            self._notice(line)


def facts_at(
    kind: str, endpoint: Endpoint, *, key: str = "", patience: Patience | None = None
) -> Facts:
    """What a board, or the first of several, says of itself. SetupError when it is not there."""
    least: Target = next(iter(machines(kind).DEVICES.values()))
    with RpcRunner(least, endpoint, key=key, patience=patience) as runner:
        return runner.facts


def device_of(kind: str, endpoint: Endpoint, facts: Facts) -> Target:
    """The known device that a board is, by its core. SetupError when it is none."""
    with cpuinfo_file(facts) as path:
        try:
            device: Target = machines(kind).host(path)
        except ValueError as error:
            raise SetupError(f"the board at {endpoint}: {error}") from None
    return device


def build_peak(target: Target, dtype: str, threads: int, path: Path) -> tuple[Array, Array]:
    """Write the library of the multiply-add loop; its arguments. Runs in a worker."""
    import tvm

    export(tvm.compile(peak.lower(target, dtype, threads), target=target.tvm()), target, path)
    return peak.arguments(target, dtype, threads)
