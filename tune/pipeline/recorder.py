"""Outcomes in, records out, each in the log before anybody sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kernels.version import version
from kernels.workload import Workload
from targets.target import Target
from tune import database
from tune.database import Record
from tune.pins import PINS
from tune.pipeline.records import own
from tune.plan import winner
from tune.runners.protocol import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    """Turns outcomes into records, in the log before anybody sees them.

    records  what the log and its hints held, and all that was kept since
    """

    target: Target
    threads: int
    estimator: str | None
    log: Path
    records: list[Record]
    peak_flops: float

    def own(self, records: Sequence[Record], workload: Workload, kernel: str) -> list[Record]:
        """Those made as this one makes them."""
        return own(records, workload, kernel, self.target, self.threads, self.estimator)

    def winner(self, records: Sequence[Record], workload: Workload) -> Record | None:
        """The best of them, of any kernel."""
        return winner(workload, records, self.target, self.threads, self.estimator)

    def keep(
        self, stage: str, protocol: Any, results: Iterable[tuple[Workload, str, Outcome]]
    ) -> list[Record]:
        """The records of what became of workloads with kernels, all in the log at once."""
        records = [self._record(stage, protocol, *result) for result in results]
        database.append(self.log, records)
        self.records.extend(records)
        return records

    def _record(
        self, stage: str, protocol: Any, workload: Workload, kernel: str, outcome: Outcome
    ) -> Record:
        return Record(
            workload=workload.key,
            kernel=kernel,
            kernel_version=version(kernel, self.target.kind, workload.dtype),
            config=outcome.config,
            target=self.target.kind,
            device=self.target.device,
            threads=self.threads,
            stage=stage,
            seconds=outcome.seconds,
            apart_s=outcome.apart_s,
            error=outcome.error,
            checked=outcome.checked,
            estimator=self.estimator,
            peak_flops=self.peak_flops,
            protocol=asdict(protocol),
            board=outcome.board,
            ran=outcome.ran,
            tvm=PINS["apache-tvm"],
            when=datetime.now(UTC).isoformat(timespec="seconds"),
        )
