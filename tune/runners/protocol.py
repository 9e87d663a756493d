"""What every runner offers, whatever it measures on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
    error    None, or why it failed: `invalid: …`, `compile: …`, `run: …`, `timeout: …`, `wrong: …`
    checked  its output was compared with the reference and was right
    """

    config: Config
    seconds: tuple[float, ...] = ()
    error: str | None = None
    checked: bool = False


class Runner(Protocol):
    """Builds and measures candidates."""

    def measure(
        self, workload: Workload, kernel: str, configs: Sequence[Config]
    ) -> Iterator[Outcome]:
        """One outcome a config, in their order."""
        ...
