"""Candidates for aarch64, judged without a board: by instructions executed or by cycles modelled.

Each is built here, called under QEMU and checked against the reference like any other. Either
measure depends on the code and its inputs alone, so that candidates may run side by side, and
one call says it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kernels import kernel
from targets.target import Target
from tune import mca
from tune.builder import linker
from tune.emulator.guest import guest
from tune.emulator.instrument import CALLS, Count, GuestFailed, GuestTimeout, instrument
from tune.runners.builders import Builders
from tune.runners.candidate import Candidate
from tune.runners.protocol import Entry, Outcome
from tune.verify import case, difference

# A record's seconds say how much: one instruction, or cycle, at 1 GHz is a unit, not a prediction.
NOMINAL_HZ = 1e9


class Estimator(NamedTuple):
    """How code is judged: its cost, and how many multiply-adds of a vector cost one at best."""

    cost: Callable[[Count, Target], float]
    peak: Callable[[Target], float]


# As records name them.
ESTIMATORS = {
    "instructions": Estimator(lambda count, target: count.instructions, lambda target: 1.0),
    "mca": Estimator(lambda count, target: mca.cycles(count.blocks, target), mca.peak),
}

RUN_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How an estimate is made, and by what; stored with it. Of `calls`, the last one counts."""

    tools: str
    calls: int = CALLS


class EstimateRunner:
    """Builds and judges `workers` candidates at a time, each on one emulated thread."""

    threads = 1
    fuses = False  # what is saved is memory traffic, which neither measure sees

    def __init__(self, target: Target, workers: int, estimator: str = "instructions") -> None:
        """SetupError when the emulator, its packages, a compiler or LLVM's tools cannot be had."""
        self._target = target
        self._estimator = ESTIMATORS[estimator]
        self._instrument = instrument(guest(), linker(target))
        self.at_once = workers
        self._builders = Builders(target, workers)
        major, minor = self._instrument.guest.emulator.version
        # Models of a core differ from one LLVM to the next.
        model = f", {mca.tool()}" if estimator == "mca" else ""
        self.trial = self.final = Protocol(tools=f"qemu {major}.{minor}{model}")

    def __enter__(self) -> EstimateRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._builders.stop()

    def peak_flops(self, dtype: str) -> float:
        """At the nominal frequency, with nothing but multiply-adds of whole vectors."""
        lanes = self._target.cpu.lanes(dtype)
        return 2 * lanes * self._estimator.peak(self._target) * NOMINAL_HZ

    def memory_bytes_per_s(self) -> None:
        """Not told."""

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Each entry and its outcome, in their order; one sample is the cost in nominal seconds."""
        for workload in {entry.workload for entry in entries}:
            case(workload)  # once, before all threads ask for it
        with ThreadPoolExecutor(self.at_once) as pool:
            outcomes = pool.map(self._judge, self._builders.build(entries))
            yield from zip(entries, outcomes, strict=True)

    def expect(self, rivals: Iterable[Entry]) -> None:
        """Nothing: nobody competes."""

    def compete(self, network: Sequence[Entry], rivals: Sequence[Entry]) -> list[Outcome]:
        """None: what was estimated once is known."""
        return []

    def _judge(self, built: Candidate | Outcome) -> Outcome:
        """Call, compare, estimate."""
        if isinstance(built, Outcome):
            return built
        workload, config = built.workload, built.config
        x, weights, _ = case(workload)
        packed = kernel(built.kernel).pack(workload, config, weights)
        y = np.full(built.shapes[-1], np.nan, workload.dtype)
        try:
            count = self._instrument.kernel(
                built.library, [x.reshape(built.shapes[0]), *packed, y], timeout_s=RUN_TIMEOUT_S
            )
        except GuestFailed as error:
            return Outcome(config=config, error=f"run: {error}")
        except GuestTimeout as error:
            return Outcome(config=config, error=f"timeout: {error}")
        finally:
            built.library.unlink(missing_ok=True)
        wrong = difference(workload, count.y)
        if wrong:
            return Outcome(config=config, error=f"wrong: {wrong}")
        nominal_s = self._estimator.cost(count, self._target) / NOMINAL_HZ
        return Outcome(config=config, seconds=(nominal_s,), checked=True)
