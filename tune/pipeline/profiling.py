"""The artifact layer by layer: what each takes where it works."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from kernels.reference import Array
from targets import machines
from targets.target import Target
from tune.errors import GateError, SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.peers import as_input, random_images
from tune.pins import check_pins
from tune.pipeline.building import build, device_of
from tune.pipeline.records import Log
from tune.pipeline.site import Site, runner_at
from tune.profile import Bursts, rows
from tune.runners.local import LocalRunner
from tune.runners.protocol import Runner
from tune.runners.rpc import RpcRunner
from tune.runners.worker import WorkerCrash, WorkerError, WorkerTimeout, elsewhere
from tune.runtime import check_library, read_manifest

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

    rounds   of `profile.Bursts`; on a GPU, inferences
    layers   of the result on a CPU, as `profile.rows` has them, beside inferences without a trace
    kernels  on a GPU, as `profile_cuda.rows` has them

    UsageError when the library is of another kind of machine, SetupError where it cannot run,
    GateError when it fails.
    """
    check_pins()
    load_average = None if site.endpoint else os.getloadavg()[0]
    made_for = target if library is None else _made_for(library, target)
    if site.endpoint is None and not machines(target.kind).can_run(made_for):
        raise SetupError(
            f"this machine cannot run code for {made_for.device}; expected a machine of that kind, "
            f"here or as a board; pass --rpc HOST:PORT"
        )
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
        images = as_input(random_images(model, seed), manifest["input"]["dtype"])
        result = {
            "workload": model.title,
            "device": target.device,
            "threads": site.threads,
            "load_average": load_average,
        }
        if target.kind == "cuda":
            progress("tracing kernels")
            return result | {"kernels": _on_gpu(library, images, rounds)}
        progress("measuring the peak")
        result["peak_flops"] = runner.peak_flops(model.dtype)
        result["memory_bytes_per_s"] = runner.memory_bytes_per_s()
        progress("tracing inferences")
        return result | _on_cpu(library, manifest, images, Bursts(rounds=rounds), runner)


def threads_in(library: Path) -> int:
    """As many as a library was built for."""
    threads: int = read_manifest(library)["threads"]
    return threads


def _made_for(library: Path, target: Target) -> Target:
    """The device of a library that is whole. UsageError when it is of another kind of machine."""
    manifest = read_manifest(library)
    check_library(manifest, library)
    made_for = device_of(manifest, library)
    if made_for.kind != target.kind:
        raise UsageError(
            f"{library} was built for {made_for.device}; expected a library for {target.kind}, as "
            f"--target says; pass --target {made_for.kind}"
        )
    return made_for


def _on_cpu(
    library: Path, manifest: dict[str, Any], images: Array, bursts: Bursts, runner: Runner
) -> dict[str, Any]:
    """Inferences and layers; what was recorded for other threads than now is left out."""
    assert isinstance(runner, LocalRunner | RpcRunner), "no estimator was asked for"
    try:
        trace = runner.trace(library, images, bursts)
    except WorkerTimeout as error:
        raise GateError(
            f"{library} is not done: {error}; expected {bursts.inferences} inferences until then; "
            f"pass fewer --rounds"
        ) from None
    except (WorkerError, WorkerCrash) as error:
        raise GateError(
            f"{library} cannot be traced: {error}; expected a library that runs there; "
            f"build it again"
        ) from None
    layers = rows(manifest["layers"], trace)
    if manifest["threads"] != runner.threads:
        layers = [layer | {"recorded_s": None} for layer in layers]
    return {"inference_s": median(trace.inferences_s), "layers": layers}


def _on_gpu(library: Path, images: Array, inferences: int) -> list[dict[str, Any]]:
    """Kernels of the graph. SetupError when PyTorch cannot see them."""
    from tune import profile_cuda

    try:
        return elsewhere(profile_cuda.profile, library, images, inferences, timeout_s=GPU_TIMEOUT_S)
    except (WorkerError, WorkerCrash, WorkerTimeout) as error:
        raise SetupError(
            f"PyTorch's profiler sees no kernels: {error}; expected a PyTorch for CUDA, and a "
            f"driver that lets it; install one, or see what the GPU's machine allows"
        ) from None
