"""Layers and a log in, more records out: the loop of search, build, measure and record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from kernels.workload import flops
from targets.target import Target
from tune.database import Record
from tune.mobilenet import Layer
from tune.pins import check_pins
from tune.pipeline.recorder import Recorder
from tune.pipeline.records import Log
from tune.pipeline.searches import (
    BATCH,
    FINALISTS,
    Search,
    batch,
    finalists,
    in_time,
    searches_of,
    stage,
    weights,
)
from tune.pipeline.site import Site, runner_at
from tune.plan import plan
from tune.runners.protocol import Entry


class Effort(NamedTuple):
    """When a search ends.

    trials      of a workload with a kernel, at most
    worthwhile  share of the network's time that further trials must promise
    """

    trials: int
    worthwhile: float


EFFORTS = {
    "quick": Effort(trials=24, worthwhile=0.002),
    "full": Effort(trials=96, worthwhile=0.001),
    "max": Effort(trials=1 << 30, worthwhile=0.0),
}
FINALS_SHARE = 0.2  # of the budget
RECENT = timedelta(hours=1)  # a shared machine is another one from hour to hour


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One finished measurement, and how the whole stands.

    flops      operations of the workload
    done       measurements of this run
    best_s     of this workload so far, seconds, None until something ran
    elapsed_s  of this run; left_s until its budget ends, None without one
    """

    record: Record
    flops: int
    done: int
    best_s: float | None
    elapsed_s: float
    left_s: float | None


def tune(
    networks: Sequence[Sequence[Layer]],
    target: Target,
    log: Log,
    *,
    site: Site,
    budget_s: float | None = None,
    trials: int | None = None,
    effort: str = "full",
    kernels: Sequence[str] | None = None,
    finals: bool = True,
    seed: int = 0,
) -> Iterator[Progress]:
    """Measure where networks can gain most, record by record, until budget, trials or gain end.

    networks  of each its layers, first to last, all of one dtype; a share of the time of a small
              one counts as much as the same share of a large one's
    finals    let the fastest of each workload meet at the end, for which a part of the budget is
              kept

    SetupError when code for `target` cannot run there, LogError when the log cannot be used.
    """
    check_pins()
    start = time.monotonic()
    done = 0
    with runner_at(site, target) as runner:
        recorder = Recorder(
            target=target,
            threads=runner.threads,
            estimator=site.estimator,
            log=log.path,
            records=list(log.records()),
            peak_flops=runner.peak_flops(networks[0][0].workload.dtype),
        )
        exact = site.estimator is not None
        since = "" if exact else (datetime.now(UTC) - RECENT).isoformat()
        searches = searches_of(weights(networks, runner.fuses), recorder, kernels, since=since)

        def left_s() -> float | None:
            return None if budget_s is None else budget_s - (time.monotonic() - start)

        def progress(record: Record, search: Search) -> Progress:
            return Progress(
                record=record,
                flops=flops(search.workload),
                done=done,
                best_s=search.best_s(),
                elapsed_s=time.monotonic() - start,
                left_s=left_s(),
            )

        finals_s = 0.0 if exact or not finals or budget_s is None else FINALS_SHARE * budget_s
        while trials is None or done < trials:
            left = left_s()
            if left is not None and left <= finals_s:
                break
            enough = EFFORTS[effort].worthwhile / len(networks)
            entries = batch(
                searches,
                recorder.peak_flops,
                EFFORTS[effort].trials,
                enough,
                at_once=max(runner.at_once, BATCH),
                left=None if trials is None else trials - done,
                seed=seed,
            )
            if not entries:
                break
            for entry, outcome in runner.measure(list(entries)):
                search = entries[entry]
                result = (search.workload, search.kernel, outcome)
                [record] = recorder.keep("trial", runner.trial, [result])
                search.learn(outcome.config, record.time_s)
                done += 1
                yield progress(record, search)

        finals_start, met = time.monotonic(), 0

        def most(remaining: int) -> int:
            """Rivals of each workload, so that in the time left all workloads have their turn."""
            left = left_s()
            if left is None or not met:
                return FINALISTS
            return in_time(left, (time.monotonic() - finals_start) / met, remaining)

        if finals:
            expected = (rival for rivals in finalists(searches, recorder) for rival in rivals)
            runner.expect(search.entry(config) for search, config in expected)
        for rivals in finalists(searches, recorder, most) if finals else ():
            left = left_s()
            if left is not None and left <= 0:
                break
            layers = stage(networks, rivals[0][0].workload)
            choices = plan(layers, recorder.records, target, runner.threads, fuse=False)
            network = [
                Entry(workload=one.workload, kernel=one.kernel, config=one.config)
                for one in choices
            ]
            invited = [search.entry(config) for search, config in rivals]
            outcomes = runner.compete(network, invited)
            met += len(rivals)
            ways = [search for search, _ in rivals[: len(outcomes)]]
            results = [(w.workload, w.kernel, o) for w, o in zip(ways, outcomes, strict=True)]
            records = recorder.keep("final", runner.final, results)
            for search, record in zip(ways, records, strict=True):
                yield progress(record, search)
