"""The artifact against its peers: same weights, same input, in turns.

Each contender runs in a process of its own, started once, because thread pools of other libraries
spin after their work. On a GPU's machine they load side by side, but each has the GPU for itself
while it chooses kernels by the clock, as cuDNN and compilers do: others would change the choice.
What it computes is compared with a float64 reference before it is timed.
Then rounds alternate between the processes, in an order that rotates, so that drift of a shared
machine falls on all alike, and none begins before the threads of the last one sleep.

Where time is short, those that are quickly ready meet first, then once more with the slow ones, as
far as these are ready by then: times of a result are all of one meeting.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tune.errors import GateError, UsageError
from tune.mobilenet import MobileNet
from tune.peers import OURS, PEERS, REFERENCE, Absent, Array, Job, Peer
from tune.peers.judge import difference, expected_logits
from tune.peers.process import PeerFailed, PeerLate, Process

if TYPE_CHECKING:
    from tune.weights import Weights

NO_TIME = "no time was left for it"  # so begins the reason of who is absent for that


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How times are taken.

    count     rounds; in each, every contender has one burst
    warmup    untimed calls that open a burst
    burst_s   how long the timed calls of a burst last at least, in sum
    """

    count: int = 15
    warmup: int = 2
    burst_s: float = 0.15
    prepare_timeout_s: float = 600.0
    burst_timeout_s: float = 60.0

    def about_s(self, contenders: int) -> float:
        """How long all rounds take."""
        return 2 * self.count * contenders * self.burst_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender's result. Percentiles are over the calls of all rounds."""

    name: str
    version: str
    median_s: float
    p20_s: float
    p80_s: float
    max_abs_diff: float  # of its logits from the reference's
    ratio_to_ours: float  # of medians; above 1 is slower than ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Who was how fast, from the fastest, and under which conditions; `asdict` of it is stored."""

    workload: str
    threads: int
    peak_gflops: float
    floor_s: float  # the multiply-adds at that peak
    load_average: float  # over the minute before the start
    device: str
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...]


def compare(
    model: MobileNet,
    weights: Weights,
    library: Path,
    *,
    threads: int,
    peak_flops: float,
    device: str,
    place: str = "cpu",
    peers: Mapping[str, Peer] = PEERS,
    reference: Peer = REFERENCE,
    rounds: Rounds | None = None,
    seed: int = 0,
    deadline: float | None = None,
    keep: Callable[[Comparison], None] = lambda _: None,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Our `library`, always, and `peers` on one random batch of images.

    peak_flops  what the machine can do on `threads` threads
    device      the machine's name, as it shall appear in the result
    place       where all compute, as PyTorch calls it: cpu or cuda
    deadline    on the clock of `time.monotonic`; a peer that is not ready in time is absent
    keep        is given each meeting's result; what is slow has met nobody in the first one's
    progress    is told, in a line, what happens

    A peer that is not installed or not set up for the model's dtype, fails, hangs or computes
    something else is absent, with the reason. GateError when that is our library; UsageError when
    there is none; SetupError when the reference fails.
    """
    _check(library)
    rounds = rounds or Rounds()
    load_average = os.getloadavg()[0]
    job = Job.at_random(
        model, weights, threads=threads, seed=seed, library=library.resolve(), place=place
    )

    def left_s() -> float:
        return math.inf if deadline is None else deadline - time.monotonic()

    meetings = _meetings({OURS: PEERS[OURS], **peers}, short=deadline is not None)
    entrants: list[_Entrant] = []
    with ExitStack() as stack:
        most_s = rounds.prepare_timeout_s

        @cache
        def expected() -> Array:
            progress("computing what is expected")
            return expected_logits(job, min(most_s, max(0.0, left_s())), reference)

        if place == "cpu":
            expected()
        for number, newcomers in enumerate(meetings, 1):
            for group in _groups(newcomers, together=place != "cpu"):
                progress(f"loading {', '.join(group)}")
                joining = {
                    _Entrant(name=name, process=stack.enter_context(Process(threads))): peer
                    for name, peer in group.items()
                }
                spare_s = left_s() - rounds.about_s(len(entrants) + 1)
                _load(joining, job, most_s, spare_s, meanwhile=expected)
                for entrant in joining:
                    entrants.append(entrant)
                    if entrant.failure is not None:
                        continue
                    progress(f"preparing {entrant.name}")
                    spare_s = left_s() - rounds.about_s(len(entrants))
                    with _dropping_out(entrant):
                        _prepare(entrant, job, expected(), most_s, spare_s)
            if any(not (entrant.failure or entrant.samples) for entrant in entrants):
                _race(entrants, rounds, left_s, progress)
            absent = {e.name: e.failure for e in entrants if e.failure}
            absent |= {name: NO_TIME for later in meetings[number:] for name in later}
            comparison = Comparison(
                workload=model.title,
                threads=threads,
                peak_gflops=peak_flops / 1e9,
                floor_s=2 * model.macs / peak_flops,
                load_average=load_average,
                device=device,
                rows=_rows([entrant for entrant in entrants if entrant.failure is None]),
                absent=tuple(Absent(name=n, reason=reason) for n, reason in absent.items()),
            )
            keep(comparison)
    return comparison


def _meetings(contenders: Mapping[str, Peer], *, short: bool) -> list[dict[str, Peer]]:
    """Who joins at each: one for all, or those that are slow at another when time is short."""
    parts = [
        {name: peer for name, peer in contenders.items() if (short and peer.slow) is late}
        for late in (False, True)
    ]
    return [part for part in parts if part]


def _groups(newcomers: Mapping[str, Peer], *, together: bool) -> list[Mapping[str, Peer]]:
    """Who loads side by side: all, or each alone, where there are few cores for it."""
    return [newcomers] if together else [{name: peer} for name, peer in newcomers.items()]


@dataclass(slots=True, kw_only=True, eq=False)
class _Entrant:
    """A contender: its process, its times so far, or why it has dropped out."""

    name: str
    process: Process
    version: str = ""
    max_abs_diff: float = math.nan
    samples: list[float] = field(default_factory=list)
    failure: str | None = None


@contextmanager
def _dropping_out(entrant: _Entrant) -> Iterator[None]:
    """Turn a failure into the entrant's result; GateError when the entrant is our library."""
    try:
        yield
    except PeerFailed as failure:
        entrant.process.close()
        entrant.failure = str(failure)
        if entrant.name == OURS:
            raise GateError(
                f"{OURS} has no result: {failure}; expected right logits from the library; "
                f"build it again from the same weights"
            ) from None


def _load(
    joining: Mapping[_Entrant, Peer],
    job: Job,
    most_s: float,
    left_s: float,
    meanwhile: Callable[[], object],
) -> None:
    """Let all load their libraries and the network, side by side, until each has or has failed.

    most_s  each may take; less when less is left
    """
    for entrant, peer in joining.items():
        with _dropping_out(entrant):
            _check_dtype(peer, job.model.dtype)
            if left_s <= 0:
                raise PeerFailed(NO_TIME)
            entrant.process.tell("load", peer, job)
    meanwhile()
    for entrant in joining:
        if entrant.failure is None:
            with _dropping_out(entrant):
                _answer(entrant.process.answer, most_s, left_s)


def _prepare(entrant: _Entrant, job: Job, expected: Array, most_s: float, left_s: float) -> None:
    """Make ready who has loaded; PeerFailed when its logits are not the expected ones.

    most_s  it may take; less when less is left
    """
    if left_s <= 0:
        raise PeerFailed(NO_TIME)
    entrant.process.tell("ready")
    entrant.version, y = _answer(entrant.process.answer, most_s, left_s)
    entrant.max_abs_diff = difference(job, y, expected)


def _answer(answer: Callable[[float], Any], most_s: float, left_s: float) -> Any:
    """What is answered in so much time; PeerFailed with NO_TIME when it was short."""
    try:
        return answer(min(most_s, left_s))
    except PeerLate as late:
        raise PeerFailed(f"{NO_TIME}: {late}" if left_s < most_s else str(late)) from None


def _race(
    entrants: list[_Entrant],
    rounds: Rounds,
    left_s: Callable[[], float],
    progress: Callable[[str], None],
) -> None:
    """Time all who are still there, round by round; who opens a round closes the next.

    One round at least, and no other when no time is left.
    """
    for entrant in entrants:
        entrant.samples.clear()
    for number in range(rounds.count):
        if number and left_s() <= 0:
            break
        progress(f"round {number + 1} of {rounds.count}")
        turn = number % len(entrants)
        for entrant in entrants[turn:] + entrants[:turn]:
            if entrant.failure is None:
                with _dropping_out(entrant):
                    entrant.samples += entrant.process.ask(
                        "burst", rounds.warmup, rounds.burst_s, timeout_s=rounds.burst_timeout_s
                    )


def _rows(entrants: Sequence[_Entrant]) -> tuple[Row, ...]:
    """One row an entrant, the fastest first; one of them is ours."""
    times = {entrant.name: percentiles(entrant.samples) for entrant in entrants}
    rows = []
    for entrant in entrants:
        p20_s, median_s, p80_s = times[entrant.name]
        rows.append(
            Row(
                name=entrant.name,
                version=entrant.version,
                median_s=median_s,
                p20_s=p20_s,
                p80_s=p80_s,
                max_abs_diff=entrant.max_abs_diff,
                ratio_to_ours=median_s / times[OURS][1],
            )
        )
    return tuple(sorted(rows, key=lambda row: row.median_s))


def percentiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    p20, median, p80 = np.percentile(samples, (20, 50, 80)).tolist()
    return p20, median, p80


def _check_dtype(peer: Peer, dtype: str) -> None:
    """PeerFailed when the peer would compute in another one."""
    if dtype not in peer.dtypes:
        raise PeerFailed(f"it is not set up for {dtype}; expected {' or '.join(peer.dtypes)}")


def _check(library: Path) -> None:
    """UsageError when there is nothing that can be compared."""
    if not library.is_file():
        raise UsageError(
            f"no library at {library}; expected a .so that build has written; "
            f"run: python -m tune build --target x86 -o {library}"
        )
