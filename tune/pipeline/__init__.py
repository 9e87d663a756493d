"""The one place where the stages meet. Yields or returns results and prints nothing."""

from __future__ import annotations

from tune.pipeline.building import build, classify, network_in
from tune.pipeline.checking import check
from tune.pipeline.comparing import bench
from tune.pipeline.exchange import read_csv, write_csv
from tune.pipeline.explaining import explain
from tune.pipeline.harvesting import harvest
from tune.pipeline.logs import add, best, diff, merge, prune, stats
from tune.pipeline.modelling import roofline
from tune.pipeline.packaging import build_package, package
from tune.pipeline.profiling import profile, threads_in
from tune.pipeline.records import Log, show, winners
from tune.pipeline.scaling import scaling
from tune.pipeline.site import Site, check_estimator, threads_of
from tune.pipeline.tuning import Progress, tune
from tune.pipeline.verifying import failures, verify

__all__ = [
    "Log",
    "Progress",
    "Site",
    "add",
    "bench",
    "best",
    "build",
    "build_package",
    "check",
    "check_estimator",
    "classify",
    "diff",
    "explain",
    "failures",
    "harvest",
    "merge",
    "network_in",
    "package",
    "profile",
    "prune",
    "read_csv",
    "roofline",
    "scaling",
    "show",
    "stats",
    "threads_in",
    "threads_of",
    "tune",
    "verify",
    "winners",
    "write_csv",
]
