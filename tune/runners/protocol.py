"""What every runner offers, whatever it measures on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from kernels.space import Config
from kernels.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One way to compute a workload."""

    workload: Workload
    kernel: str
    config: Config = field(hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one candidate.

    seconds  samples of its time; empty when it failed
    apart_s  of two layers in one: median seconds of the two apart, taken in turn with it
    error    None, or why it failed: `invalid: …`, `compile: …`, `run: …`, `timeout: …`, `wrong: …`
    checked  its output was compared with the reference and was right
    board    address of the board it ran on, None for this machine
    ran      when it was sent to a board and when it had been measured, seconds since 1970
    """

    config: Config
    seconds: tuple[float, ...] = ()
    apart_s: float | None = None
    error: str | None = None
    checked: bool = False
    board: str | None = None
    ran: tuple[float, float] | None = None


class Runner(Protocol):
    """Builds and measures candidates; a context manager that ends its processes.

    trial    the rules by which `measure` takes a time, a dataclass
    final    those of `compete`
    threads  that a candidate computes on
    at_once  candidates that it has to be given at least, or else some part of it is idle
    fuses    whether a time tells what it saves to compute two layers in one
    """

    @property
    def trial(self) -> Any: ...
    @property
    def final(self) -> Any: ...
    @property
    def threads(self) -> int: ...
    @property
    def at_once(self) -> int: ...
    @property
    def fuses(self) -> bool: ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def peak_flops(self, dtype: str) -> float:
        """What the machine can do on these threads at most in `dtype`, FLOP/s."""
        ...

    def memory_bytes_per_s(self) -> float | None:
        """What these threads can read from memory; None where nobody tells."""
        ...

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Each entry and its outcome, in their order unless several boards share the work."""
        ...

    def expect(self, rivals: Iterable[Entry]) -> None:
        """Those who will compete, in about this order, so that they can be built meanwhile."""
        ...

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> Sequence[Outcome]:
        """One outcome a rival, in their order, timed in turns; none where that tells nothing new.

        network  what computes each layer, first to last, no two in one
        rivals   for one workload of the network, or for two layers in one
        """
        ...
