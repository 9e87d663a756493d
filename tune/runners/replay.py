"""Outcomes from a log instead of a machine: strategies can be tried without measuring."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from kernels.space import Config
from kernels.workload import Workload
from tune.database import Record
from tune.runners.protocol import Outcome


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

    def measure(
        self, workload: Workload, kernel: str, configs: Sequence[Config]
    ) -> Iterator[Outcome]:
        """One outcome a config, in their order; a failure for those that were not recorded."""
        for config in configs:
            record = self._recorded.get(_name(workload.key, kernel, config))
            if record is None:
                yield Outcome(config=config, error="run: not recorded in the log that is replayed")
            else:
                yield Outcome(
                    config=config,
                    seconds=record.seconds,
                    error=record.error,
                    checked=record.checked,
                )


def _name(workload: str, kernel: str, config: Config) -> tuple[str, str, str]:
    return workload, kernel, json.dumps(config, sort_keys=True)
