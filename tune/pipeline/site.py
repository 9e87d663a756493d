"""Where candidates are judged, and what judges them there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from targets import machines
from targets.target import Endpoint, Target
from tune.database import MODELS
from tune.errors import SetupError, UsageError
from tune.runners.local import LocalRunner
from tune.runners.protocol import Runner


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
