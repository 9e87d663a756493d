"""The artifact layer by layer: what each takes where it works."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from targets.target import Target
from tune.errors import GateError
from tune.mobilenet import MobileNet
from tune.peers import Job, as_input
from tune.pins import check_pins
from tune.pipeline.building import build
from tune.pipeline.records import Log
from tune.pipeline.site import Site, runner_at
from tune.profile import Bursts, rows
from tune.runners.local import LocalRunner
from tune.runners.rpc import RpcRunner
from tune.runners.worker import WorkerCrash, WorkerError, WorkerTimeout, elsewhere
from tune.runtime import read_manifest

GPU_TIMEOUT_S = 120.0


def profile(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    site: Site,
    weights: Path | None,
    seed: int,
    library: Path | None,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Our library, built from the log when none is given, here or on a board: the result as data.

    layers   on a CPU, as `profile.rows` has them, beside inferences that nobody watched
    kernels  on a GPU, as `profile_cuda.rows` has them

    SetupError where code for `target` cannot run, GateError when the library does not.
    """
    check_pins()
    with (
        tempfile.TemporaryDirectory(prefix="septune-") as folder,
        runner_at(site, target) as runner,
    ):
        if library is None:
            progress("building our library from the log")
            library = Path(folder) / "profile.so"
            arguments = {"threads": site.threads, "weights": weights, "seed": seed}
            build(model, target, log, output=library, **arguments)  # type: ignore[arg-type]
        manifest = read_manifest(library)
        result = {
            "workload": model.title,
            "device": target.device,
            "threads": site.threads,
            "load_average": os.getloadavg()[0],
        }
        if target.kind != "cuda":
            progress("measuring the peak")
            result["peak_flops"] = runner.peak_flops(model.dtype)
            result["memory_bytes_per_s"] = runner.memory_bytes_per_s()
        progress("watching inferences")
        try:
            if target.kind == "cuda":
                from tune import profile_cuda

                kernels = elsewhere(profile_cuda.profile, library, seed, timeout_s=GPU_TIMEOUT_S)
                return result | {"kernels": kernels}
            assert isinstance(runner, LocalRunner | RpcRunner), "no estimator was asked for"
            job = Job.at_random(model, {}, threads=site.threads, seed=seed)
            images = as_input(job.x, manifest["input"]["dtype"])
            watched = runner.watch(library, images, Bursts(rounds=rounds))
        except (WorkerError, WorkerCrash, WorkerTimeout) as error:
            raise GateError(
                f"{library} cannot be watched: {error}; expected a library that runs there; "
                f"build it again"
            ) from None
    return result | {
        "inference_s": median(watched.inferences_s),
        "layers": rows(manifest["layers"], watched),
    }
