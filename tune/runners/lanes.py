"""Candidates shared between boards, each of which may be lost at any moment."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

from tune.runners.board import Board, Lost
from tune.runners.candidate import Candidate
from tune.runners.handshake import NoServer
from tune.runners.protocol import Outcome
from tune.runners.session import Turns, run

# Sessions that one candidate may end: with the board alive, when that is the candidate's doing; and
# with the board gone, when it may be.
CRASHES, LOSSES = 2, 3


def share(
    built: Iterator[Candidate | Outcome],
    count: int,
    boards: Sequence[Board],
    turns: Turns,
    *,
    away_s: float,
    notice: Callable[[str], None],
) -> Iterator[tuple[int, Outcome]]:
    """Number and outcome of each of `count` candidates, as boards deliver them.

    A board that is lost has `away_s` to come back, while the others do its work. NoServer when none
    is left.
    """
    work = _Work(boards=len(boards))
    threads = [threading.Thread(target=_feed, args=(work, built, count))]
    for board in boards:
        threads.append(threading.Thread(target=_lane, args=(work, board, turns, away_s, notice)))
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            result = work.results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        work.close()
        for board in boards:
            board.close()
        for thread in threads:
            thread.join()


@dataclass(slots=True, kw_only=True)
class _Task:
    """A candidate on its way, and how many sessions ended at it."""

    number: int
    candidate: Candidate
    crashes: int = 0
    losses: int = 0

    def blame(self, lost: Lost) -> str | None:
        """The candidate's error, if a session was lost by its doing; None for another try."""
        self.crashes += lost.alive
        self.losses += not lost.alive
        if lost.alive and lost.overdue:
            return "timeout: no answer in time on the board"
        if self.crashes >= CRASHES:
            return f"run: ended the board's session, {self.crashes} times"
        if self.losses >= LOSSES:
            return f"run: the board went away, {self.losses} times"
        return None


class _Work:
    """What threads share: candidates to measure, and results."""

    def __init__(self, boards: int) -> None:
        self.results: SimpleQueue[tuple[int, Outcome] | BaseException] = SimpleQueue()
        self._todo: deque[_Task] = deque()
        self._boards = boards
        self._change = threading.Condition()
        self.closed = False

    def add(self, task: _Task) -> None:
        with self._change:
            self._todo.append(task)
            self._change.notify()

    def add_again(self, task: _Task) -> None:
        """Before those that were never tried: troubles of a board hit one candidate at a time."""
        with self._change:
            self._todo.appendleft(task)
            self._change.notify()

    def take(self) -> _Task | None:
        """The next, once there is one; None when all is over."""
        with self._change:
            self._change.wait_for(lambda: self._todo or self.closed)
            return None if self.closed else self._todo.popleft()

    def drop_board(self, error: NoServer) -> bool:
        """One board fewer; whether others are left, else `error` is the result."""
        with self._change:
            self._boards -= 1
            if self._boards == 0:
                self.results.put(error)
            return self._boards > 0

    def close(self) -> None:
        with self._change:
            self.closed = True
            self._change.notify_all()


def _feed(work: _Work, built: Iterator[Candidate | Outcome], count: int) -> None:
    """Hand on what builders deliver."""
    try:
        for number, one in zip(range(count), built, strict=True):
            if work.closed:
                break
            if isinstance(one, Outcome):
                work.results.put((number, one))
            else:
                work.add(_Task(number=number, candidate=one))
    except Exception as error:
        work.results.put(error)


def _lane(
    work: _Work, board: Board, turns: Turns, away_s: float, notice: Callable[[str], None]
) -> None:
    """Measure on one board until all is over or the board stays away."""
    task: _Task | None = None
    try:
        while True:
            board.connect(away_s)
            if (task := work.take()) is None:
                return
            address, began = board.address, time.time()
            answer = board.attempt(run, [task.candidate], turns)
            if isinstance(answer, Lost):
                outcome = Outcome(config=task.candidate.config, error=task.blame(answer))
                if not answer.alive and not work.closed:
                    notice(f"the board at {address} was lost; it has {away_s:g} s to come back")
            else:
                outcome = answer[0]
            if outcome.error or outcome.checked:
                ran = (began, time.time())
                work.results.put((task.number, replace(outcome, board=address, ran=ran)))
                task.candidate.library.unlink()
            else:
                work.add_again(task)
            task = None
    except NoServer as error:
        if task is not None:
            work.add_again(task)
        if not work.closed and work.drop_board(error):
            notice(f"a board is dropped: {error}")
    except Exception as error:
        work.results.put(error)
    finally:
        board.disconnect()
