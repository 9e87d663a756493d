"""Where candidates are judged, what judges them there, and on how many threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from targets import machines
from targets.target import Endpoint, Target
from tune.database import MODELS
from tune.errors import SetupError, UsageError
from tune.pipeline.records import Log
from tune.runners.local import LocalRunner
from tune.runners.protocol import Runner
from tune.runners.worker import WorkerCrash, WorkerError, WorkerTimeout

# Estimator -> the kind of machine whose code it judges.
JUDGES = {"instructions": "arm64", "mca": "arm64", "roofline": "cuda"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where candidates are judged: on this machine unless it says otherwise.

    endpoint   a board's RPC server, or the tracker of several that serve `key`
    estimator  what counts instead of a clock
    threads    that a candidate computes on
    peaks      of this machine's GPU by dtype, FLOP/s, where they were measured before
    notice     is told, in a line, when a board is lost, dropped or another than thought
    """

    endpoint: Endpoint | None = None
    key: str = ""
    estimator: str | None = None
    threads: int = 1
    peaks: Mapping[str, float] = field(default_factory=dict)
    notice: Callable[[str], None] = lambda _: None


def check_estimator(estimator: str | None, kind: str) -> None:
    """UsageError unless it judges code for such a machine."""
    if estimator is not None and JUDGES[estimator] != kind:
        known = [name for name, judged in JUDGES.items() if judged == kind]
        raise UsageError(
            f"estimator {estimator!r} judges code for {JUDGES[estimator]}, not for {kind}; "
            f"expected {' or '.join(known) or 'none'}; choose another --estimator or --target"
        )


def threads_of(
    target: Target,
    log: Log,
    *,
    asked: int | None,
    board: int | None,
    estimator: str | None,
    measures: bool,
) -> int:
    """How many threads code computes on: decided here, once for all that a command does.

    asked     for by the user, None where nothing was said
    board     cores of the board, None without one
    measures  whether code is measured, which is done here without a board; else it may be for a
              machine elsewhere: then the count that its records in `log` have, measurements first

    One on the host of a GPU and where an estimator judges. UsageError when records have no count,
    or several.
    """
    if estimator is not None or target.kind == "cuda":
        return 1
    if given := asked or board:
        return given
    machine = machines(target.kind)
    if measures or machine.is_core(target):
        cores: int = machine.cores()
        return cores
    records = [
        record
        for record in log.records()
        if (record.target, record.device) == (target.kind, target.device)
    ]
    counts = {record.threads for record in records if record.estimator is None}
    counts = counts or {record.threads for record in records}
    if len(counts) != 1:
        known = f"records of {' and '.join(map(str, sorted(counts)))} threads"
        raise UsageError(
            f"this machine is no {target.device}, whose log {log.path} has "
            f"{known if counts else 'no records'}; expected those of one thread count, which would "
            f"be the default; pass --threads N"
        )
    return counts.pop()


def runner_at(site: Site, target: Target) -> AbstractContextManager[Runner]:
    """What measures there.

    SetupError when code for `target` cannot run there, UsageError when there are fewer cores than
    threads. A machine that is another than `target` says so.
    """
    return _failing_clearly(_runner(site, target))


@contextmanager
def _failing_clearly(runner: Runner) -> Iterator[Runner]:
    """The runner, whose calls for the machine's own speed end in a SetupError when they fail."""
    with runner:
        try:
            yield runner
        except (WorkerError, WorkerCrash, WorkerTimeout) as error:
            raise SetupError(
                f"the loop that tells the machine's own speed failed: {error}; expected its time; "
                f"try again while nothing else runs, or pass fewer --threads"
            ) from None


def _runner(site: Site, target: Target) -> Runner:
    check_estimator(site.estimator, target.kind)
    cores = os.cpu_count() or 1
    if site.estimator in MODELS:
        from tune.runners.roofline import RooflineRunner

        return RooflineRunner(target, workers=cores)
    if site.estimator is not None:
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
    _check_machine(site, target)
    if target.kind == "cuda":
        from tune.runners.gpu import GpuRunner

        return GpuRunner(target, builders=cores, peaks=site.peaks)
    return LocalRunner(target, site.threads, builders=cores)


def _check_machine(site: Site, target: Target) -> None:
    """As `Board` looks at a board: what this machine cannot do is refused, and what it is, told."""
    machine = machines(target.kind)
    if not machine.can_run(target):
        raise SetupError(
            f"this machine cannot run code for {target.device}; expected a device of its own kind, "
            f"a board, or an estimator; leave --device out, or pass --rpc or --estimator"
        )
    if site.threads > machine.cores():
        raise UsageError(
            f"threads are {site.threads}; expected at most {machine.cores()}, one for each core "
            f"that this process may use; choose --threads {machine.cores()}"
        )
    if not machine.is_core(target):
        try:
            found = machine.host().device
        except ValueError:
            found = "not known"
        site.notice(
            f"this machine is {found}; expected {target.device}, which records will name; leave "
            f"--device out unless that is meant"
        )
