"""Outcomes from a log instead of a machine: strategies can be tried without measuring."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from kernels.space import Config
from tune.database import Record
from tune.runners.protocol import Entry, Outcome


class ReplayRunner:
    """Answers with what trials have recorded; of a config tried more than once, the last answer."""

    def __init__(self, records: Iterable[Record]) -> None:
        """`records` come from one device and number of threads, else ValueError."""
        trials = [record for record in records if record.stage == "trial"]
        places = {(record.target, record.device, record.threads) for record in trials}
        if len(places) > 1:
            raise ValueError(
                f"records come from {sorted(places)}; expected one target, device and number of "
                f"threads; choose the records of one"
            )
        self._recorded = {_name(r.workload, r.kernel, r.config): r for r in trials}

    def measure(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Outcome]]:
        """Each entry and its outcome, in their order; a failure where none was recorded."""
        for entry in entries:
            record = self._recorded.get(_name(entry.workload.key, entry.kernel, entry.config))
            outcome = Outcome(
                config=entry.config, error="run: not recorded in the log that is replayed"
            )
            if record is not None:
                outcome = Outcome(
                    config=entry.config,
                    seconds=record.seconds,
                    error=record.error,
                    checked=record.checked,
                )
            yield entry, outcome


def _name(workload: str, kernel: str, config: Config) -> tuple[str, str, str]:
    return workload, kernel, json.dumps(config, sort_keys=True)
