"""Layers and a log in, more records out: the loop of search, build, measure and record."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kernels import KERNELS, kernel, kernels_for
from kernels.space import Config, Space
from kernels.version import version
from kernels.workload import Workload, flops, parse, separables
from targets import machines
from targets.target import Endpoint, Target
from tune import database
from tune.database import MODELS, Record
from tune.errors import SetupError, UsageError
from tune.mobilenet import Layer
from tune.pins import PINS, check_pins
from tune.pipeline.records import Log, own
from tune.plan import plan
from tune.runners.local import LocalRunner
from tune.runners.protocol import Entry, Outcome, Runner
from tune.scheduler import Task, choose
from tune.search import expected_gain, propose
from tune.transfer import similar


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
BATCH = 8
FINALISTS = 6
FINALS_SHARE = 0.2  # of the budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where candidates are judged: on this machine unless it says otherwise.

    endpoint   a board's RPC server, or the tracker of several that serve `key`
    estimator  what counts instead of a clock
    threads    that a candidate computes on; None is one a core
    notice     is told, in a line, when a board is lost, dropped or another than thought
    """

    endpoint: Endpoint | None = None
    key: str = ""
    estimator: str | None = None
    threads: int | None = None
    notice: Callable[[str], None] = lambda _: None


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


@dataclass(slots=True, kw_only=True)
class _Search:
    """The state of the search for one workload with one kernel."""

    workload: Workload
    kernel: str
    weight: int
    space: Space
    size: int
    seeds: list[Config]
    history: list[tuple[Config, float | None]] = field(default_factory=list)

    def best_s(self) -> float | None:
        return min((time_s for _, time_s in self.history if time_s is not None), default=None)


def tune(
    layers: Sequence[Layer],
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
    """Measure where the network can gain most, record by record, until budget, trials or gain end.

    finals  let the fastest of each workload meet at the end, for which a part of the budget is kept

    SetupError when code for `target` cannot run there, LogError when the log cannot be used.
    """
    check_pins()
    start = time.monotonic()
    done = 0
    with runner_at(site, target) as runner:
        recorder = _Recorder(
            target=target,
            threads=runner.threads,
            estimator=site.estimator,
            log=log,
            peak_flops=runner.peak_flops(layers[0].workload.dtype),
        )
        searches = _searches(_workloads(layers, runner.fuses), recorder, kernels)

        def left_s() -> float | None:
            return None if budget_s is None else budget_s - (time.monotonic() - start)

        def progress(record: Record, search: _Search) -> Progress:
            return Progress(
                record=record,
                flops=flops(search.workload),
                done=done,
                best_s=search.best_s(),
                elapsed_s=time.monotonic() - start,
                left_s=left_s(),
            )

        exact = site.estimator is not None
        finals_s = 0.0 if exact or not finals or budget_s is None else FINALS_SHARE * budget_s
        while trials is None or done < trials:
            left = left_s()
            if left is not None and left <= finals_s:
                break
            search = _next(searches, recorder.peak_flops, EFFORTS[effort])
            if search is None:
                break
            count = BATCH if trials is None else min(BATCH, trials - done)
            configs = propose(
                search.space, search.history, seed=seed, count=count, seeds=search.seeds
            )
            for outcome in runner.measure(search.workload, search.kernel, configs):
                record = recorder.keep(search, "trial", outcome, runner.trial)
                search.history.append((outcome.config, record.time_s))
                done += 1
                yield progress(record, search)

        for rivals in _finalists(searches, recorder) if finals else ():
            left = left_s()
            if left is not None and left <= 0:
                break
            choices = plan(layers, log.records(), target, runner.threads, fuse=False)
            network = [_entry(c.workload, c.kernel, c.config) for c in choices]
            entries = [_entry(search.workload, search.kernel, config) for search, config in rivals]
            outcomes = runner.compete(network, entries)
            for (search, _), outcome in zip(rivals, outcomes, strict=False):
                yield progress(recorder.keep(search, "final", outcome, runner.final), search)


def runner_at(site: Site, target: Target) -> Runner:
    """What measures there. SetupError when code for `target` cannot run there."""
    cores = os.cpu_count() or 1
    if site.estimator is not None:
        if (site.estimator in MODELS) is not (target.kind == "cuda"):
            raise UsageError(
                f"estimator {site.estimator!r} does not judge code for {target.kind}; expected "
                f"{', '.join(MODELS)} for cuda, the others for CPUs; choose another --estimator"
            )
        if site.estimator in MODELS:
            from tune.runners.roofline import RooflineRunner

            return RooflineRunner(target, workers=cores)
        from tune.runners.estimate import EstimateRunner

        return EstimateRunner(target, workers=cores, estimator=site.estimator)
    if site.endpoint is not None:
        from tune.runners.rpc import RpcRunner

        return RpcRunner(
            target,
            site.endpoint,
            key=site.key,
            threads=site.threads,
            builders=cores,
            notice=site.notice,
        )
    machine = machines(target.kind)
    if not machine.can_run(target):
        raise SetupError(
            f"this machine cannot run code for {target.device}; expected a device of its own kind, "
            f"a board, or an estimator; leave --device out, or pass --rpc or --estimator"
        )
    if target.kind == "cuda":
        from tune.runners.gpu import GpuRunner

        return GpuRunner(target, builders=cores)
    return LocalRunner(target, site.threads or machine.cores(), builders=cores)


def _entry(workload: Workload, name: str, config: Config) -> Entry:
    return Entry(workload=workload, kernel=name, config=config)


def _workloads(layers: Sequence[Layer], fuses: bool) -> Counter[Workload]:
    """How often the network has each workload, and each two in one where that can be told."""
    single = [layer.workload for layer in layers]
    return Counter((*single, *(separables(single) if fuses else ())))


def _searches(
    workloads: Counter[Workload], recorder: _Recorder, only: Sequence[str] | None
) -> list[_Search]:
    """What is to be searched, with what the log already knows. UsageError for unknown kernels."""
    for name in only or ():
        if name not in KERNELS:
            raise UsageError(
                f"kernel {name!r} is not known; expected one of {', '.join(KERNELS)}; "
                f"leave --kernel out for all"
            )
    target, records = recorder.target, recorder.log.records()
    searches = []
    for workload, weight in workloads.items():
        for name in kernels_for(workload, target):
            if only and name not in only:
                continue
            space = kernel(name).space(workload, target)
            near = similar(records, workload, name, space, target=target, threads=recorder.threads)
            searches.append(
                _Search(
                    workload=workload,
                    kernel=name,
                    weight=weight,
                    space=space,
                    size=sum(1 for _ in space),
                    seeds=[config for config, _ in near],
                    history=database.history(recorder.own(records, workload, name)),
                )
            )
    return searches


def _next(searches: Sequence[_Search], peak_flops: float, effort: Effort) -> _Search | None:
    """The search where the network can gain most, None when none is worth its time."""
    by_key = {f"{search.workload.key} {search.kernel}": search for search in searches}
    tasks = []
    for key, search in by_key.items():
        tried = len({tuple(sorted(config.items())) for config, _ in search.history})
        remaining = min(search.size, effort.trials) - tried
        floor_s = flops(search.workload) / peak_flops
        gain = expected_gain(search.history, space_size=search.size, floor_s=floor_s)
        tasks.append(
            Task(
                key=key,
                weight=search.weight,
                best_s=search.best_s(),
                trials=tried,
                remaining=max(0, remaining),
                gain=gain,
            )
        )
    chosen = choose(tasks, worthwhile=effort.worthwhile)
    return None if chosen is None else by_key[chosen.key]


def _finalists(
    searches: Sequence[_Search], recorder: _Recorder
) -> list[list[tuple[_Search, Config]]]:
    """Of each workload the few fastest, if there are several and not all have met before."""
    records = [record for record in recorder.log.records() if record.stage == "final"]
    finals = []
    for key in dict.fromkeys(search.workload.key for search in searches):
        ranked = sorted(
            (
                (time_s, index, config)
                for index, search in enumerate(searches)
                if search.workload.key == key
                for config, time_s in search.history
                if time_s is not None
            ),
            key=lambda entry: entry[:2],
        )
        rivals = [(searches[index], config) for _, index, config in ranked[:FINALISTS]]
        met = [
            (name, record.config)
            for name in {search.kernel for search, _ in rivals}
            for record in recorder.own(records, parse(key), name)
        ]
        fresh = [config for search, config in rivals if (search.kernel, config) not in met]
        if fresh and len(rivals) > 1:
            finals.append(rivals)
    return finals


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorder:
    """Turns outcomes into records, in the log before anybody sees them."""

    target: Target
    threads: int
    estimator: str | None
    log: Log
    peak_flops: float

    def own(self, records: Sequence[Record], workload: Workload, kernel: str) -> list[Record]:
        """Those made as this one makes them."""
        return own(records, workload, kernel, self.target, self.threads, self.estimator)

    def keep(self, search: _Search, stage: str, outcome: Outcome, protocol: Any) -> Record:
        record = Record(
            workload=search.workload.key,
            kernel=search.kernel,
            kernel_version=version(search.kernel, self.target.kind, search.workload.dtype),
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
        database.append(self.log.path, [record])
        return record
