"""What a runner says of one kernel's configs for one workload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kernels.space import Config
from kernels.workload import Workload
from tune.runners.protocol import Entry, Outcome, Runner


def outcomes(
    runner: Runner, workload: Workload, kernel: str, configs: Iterable[Config]
) -> Iterator[Outcome]:
    """One a config, as they come; each is that of the entry it comes with."""
    entries = [Entry(workload=workload, kernel=kernel, config=config) for config in configs]
    for entry, outcome in runner.measure(entries):
        assert entry in entries
        assert entry.config == outcome.config
        yield outcome
