"""The one place where the stages meet. Yields or returns results and prints nothing."""

from __future__ import annotations

from tune.pipeline.building import build, classify
from tune.pipeline.comparing import bench
from tune.pipeline.explaining import explain
from tune.pipeline.modelling import roofline
from tune.pipeline.packaging import build_package, package
from tune.pipeline.records import Log, show, winners
from tune.pipeline.tuning import Progress, Site, tune

__all__ = [
    "Log",
    "Progress",
    "Site",
    "bench",
    "build",
    "build_package",
    "classify",
    "explain",
    "package",
    "roofline",
    "show",
    "tune",
    "winners",
]
