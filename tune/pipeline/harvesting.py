"""All that a short visit to a GPU can bring, step by step, into one folder.

A call with a limit sees to it that a network's first comparison, which carries what there is to
show, still fits behind its tuning; what was given up for that is made up for by later calls. Slow
peers, which compile for minutes, wait until every network has been compared with the others.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernels.workload import separables
from targets import machines
from targets.target import Target
from tune import database
from tune.bench import NO_TIME
from tune.errors import SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.peers import GPU_PEERS, as_input, random_images
from tune.pins import check_pins, installed
from tune.pipeline.building import build
from tune.pipeline.comparing import bench
from tune.pipeline.correctness import correctness, outdated
from tune.pipeline.explaining import explain
from tune.pipeline.records import Log
from tune.pipeline.searches import check_kernels
from tune.pipeline.site import Site
from tune.pipeline.tuning import FINALS_SHARE, Progress, tune
from tune.pipeline.visit import Partial, PutOff, Unfinished, Visit
from tune.runners.worker import WorkerCrash, WorkerError, WorkerTimeout, elsewhere

STEP_TIMEOUT_S = 300.0
KINDS = ("tuning", "finals", "build", "comparison", "profile")  # of steps, for each network
LOADING = ("comparison", "profile")  # those that need the library
# What each takes at least, for a network to have its first numbers. Finals have about 30 workloads,
# of which each takes more than a second where few meet (H200, 2026-11-27): six are built at once,
# then loaded, checked and timed for 35 ms or more. In a comparison six processes load a library
# each, side by side, and meet: 60 s at batch 1. Slow ones take 165 s more, of which their compilers
# take most (both on the H200, 2026-11-28).
LEAST_S = {"finals": 45.0, "build": 40.0, "comparison": 75.0, "slow peers": 165.0}
LEAST_SLICE_S = 30.0  # less is not worth the start
PACKAGES = ("torch", "triton", "apache-tvm", "numpy", "xgboost", "xgboost-cpu", "onnxruntime-gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A network, and its share of the time for tuning."""

    batch: int
    dtype: str
    share: float

    @property
    def name(self) -> str:
        return f"batch{self.batch}-{self.dtype}"

    @property
    def model(self) -> MobileNet:
        return MobileNet(batch=self.batch, dtype=self.dtype)


SETTINGS = (
    Setting(batch=1, dtype="float16", share=0.3),
    Setting(batch=256, dtype="float16", share=0.3),
    Setting(batch=1, dtype="float32", share=0.12),
    Setting(batch=256, dtype="float32", share=0.12),
    Setting(batch=8, dtype="float16", share=0.08),
    Setting(batch=64, dtype="float16", share=0.08),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Harvest:
    """What its steps know."""

    target: Target
    visit: Visit
    budget_s: float
    limit_s: float | None
    networks: tuple[str, ...]  # names of the settings
    kernels: tuple[str, ...]
    seed: int

    @property
    def folder(self) -> Path:
        return self.visit.folder

    @property
    def journal(self) -> Path:
        return self.folder / "correctness.jsonl"

    @property
    def log(self) -> Log:
        """Estimates for the device and records of others seed the search."""
        own = self.folder / "logs" / self.target.kind / f"{self.target.device}.jsonl"
        known = Log.at(None, self.target)
        hints = tuple(path for path in (known.path, *known.hints) if path.is_file())
        return Log(path=own, hints=hints)

    @property
    def site(self) -> Site:
        """Here; what the ceilings' step found out needs no second measurement."""
        path = self.folder / "ceilings.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        peaks = {"float16": found.get("f16_flops"), "float32": found.get("tf32_flops")}
        return Site(peaks={dtype: peak for dtype, peak in peaks.items() if peak})

    def library(self, setting: Setting) -> Path:
        return self.folder / f"mobilenet_v1-{setting.name}.so"


def harvest(
    target: Target,
    folder: Path,
    *,
    budget_s: float,
    limit_s: float | None = None,
    only: Sequence[str] = (),
    kernels: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Every step's result by its name; each is also FOLDER/<step>.json.

    budget_s  for tuning, of all settings together
    limit_s   after which this call starts nothing new; another one goes on
    only      names of some SETTINGS, which share the budget; all when empty
    kernels   that trials are made of, all when empty; in finals others meet them, as far as known

    Under `state` which steps have ended, why some failed, what the results of others lack, and
    whether something is left to do. SetupError when code for `target` does not run here, or when
    nothing that was tried there is right.
    """
    check_pins()
    settings = _chosen(only)
    check_kernels(kernels)
    if not machines(target.kind).can_run(target):
        raise SetupError(
            f"this machine cannot run code for {target.device}; expected one with that GPU; run "
            f"the harvest there"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make {folder}: {error.strerror}; expected a writable path; choose another -o"
        ) from None
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder.resolve() / "inductor"))
    deadline = None if limit_s is None else time.monotonic() + limit_s
    visit = Visit(folder=folder, progress=progress, deadline=deadline)
    known = _Harvest(
        target=target,
        visit=visit,
        budget_s=budget_s,
        limit_s=limit_s,
        networks=tuple(setting.name for setting in settings),
        kernels=tuple(kernels),
        seed=seed,
    )
    _reopen(known, settings)
    steps = _steps(known, settings)
    left = visit.take(steps)
    results: dict[str, Any] = {
        path.stem: json.loads(path.read_text())
        for name, _ in steps
        if (path := folder / f"{name}.json").is_file()
    }
    results["state"] = {
        "ended": visit.ended,
        "partial": visit.partial,
        "left": left,
        "spent_s": visit.spent_s,
    }
    return results


def _chosen(only: Sequence[str]) -> list[Setting]:
    """Settings of those names, all without any; their shares make up the whole."""
    known = {setting.name: setting for setting in SETTINGS}
    for name in only:
        if name not in known:
            raise UsageError(
                f"network {name!r} is not known; expected some of {', '.join(known)}; "
                f"leave --only out for all"
            )
    chosen = [setting for setting in SETTINGS if not only or setting.name in only]
    whole = sum(setting.share for setting in chosen)
    return [replace(setting, share=setting.share / whole) for setting in chosen]


def _reopen(harvest: _Harvest, settings: Sequence[Setting]) -> None:
    """What has ended elsewhere or before the code was changed, as far as a later step needs it."""
    visit = harvest.visit
    if visit.ended.get("correctness", "") is None and outdated(harvest.target, harvest.journal):
        visit.reopen(["correctness"])
    for name in (setting.name for setting in settings if not harvest.library(setting).is_file()):
        if any(visit.ended.get(f"{kind}-{name}", "") is not None for kind in LOADING):
            visit.reopen([f"build-{name}"])


def _steps(harvest: _Harvest, settings: Sequence[Setting]) -> list[tuple[str, Callable[[], Any]]]:
    """All, one network after the other, so that some have everything when the time runs out."""
    first = {"machine": _machine, "correctness": _correctness, "ceilings": _ceilings}
    kinds = (_tuning, _finals, _build, _comparison, _profile)
    steps: list[tuple[str, Callable[[], Any]]] = [
        (name, partial(step, harvest)) for name, step in first.items()
    ]
    for each in settings:
        steps += [
            (f"{kind}-{each.name}", partial(step, harvest, each))
            for kind, step in zip(KINDS, kinds, strict=True)
        ]
    return steps


def _machine(harvest: _Harvest) -> dict[str, Any]:
    """What was there, so that numbers can be understood later."""
    return {
        "target": harvest.target.device,
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "gpu": _printed(
            "nvidia-smi",
            "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit",
            "--format=csv,noheader",
        ),
        "nvcc": _printed("nvcc", "--version"),
        "cores": os.cpu_count(),
    }


def _correctness(harvest: _Harvest) -> dict[str, Any]:
    """What `pytest -m gpu` asks of kernels, which needs no pytest here."""
    return correctness(harvest.target, harvest.visit, harvest.journal)


def _ceilings(_: _Harvest) -> dict[str, Any]:
    from tune import ceilings

    return asdict(_elsewhere(ceilings.ceilings))


def _tuning(harvest: _Harvest, setting: Setting) -> dict[str, Any]:
    """Trials by network gain until the setting's share of the budget is spent."""
    visit = harvest.visit
    before_s = visit.spent_s.get(setting.name, 0.0)
    wanted_s = harvest.budget_s * setting.share * (1 - FINALS_SHARE) - before_s
    slice_s = _slice_s(harvest, setting, wanted_s, "finals", "build", "comparison")
    start = time.monotonic()
    if slice_s > 0:
        chosen = {"kernels": harvest.kernels, "finals": False}
        for event in _measured(harvest, setting, "tuning", budget_s=slice_s, **chosen):
            visit.spent_s[setting.name] = before_s + event.elapsed_s
        if slice_s < wanted_s and time.monotonic() - start >= slice_s:
            raise Unfinished
    found = _records(harvest, setting, "trial")
    failed = sum(record.error is not None for record in found)
    spent_s = visit.spent_s.get(setting.name, 0.0)
    return {"trials": len(found), "failed": failed, "spent_s": spent_s}


def _finals(harvest: _Harvest, setting: Setting) -> dict[str, Any]:
    """The fastest of each workload in turns, those that have not met yet."""
    share_s = harvest.budget_s * setting.share * FINALS_SHARE
    wanted_s = max(share_s, LEAST_S["finals"])
    slice_s = _slice_s(harvest, setting, wanted_s, "build", "comparison")
    start = time.monotonic()
    for _ in _measured(harvest, setting, "finals", budget_s=slice_s, trials=0):
        pass
    if time.monotonic() - start >= slice_s:
        raise Unfinished
    return {"finalists": len(_records(harvest, setting, "final"))}


def _slice_s(harvest: _Harvest, setting: Setting, wanted_s: float, *later: str) -> float:
    """What a step may take of the time it wants, so that a network's first comparison fits in.

    later  kinds of steps up to the comparison; where they do not fit in with it, another call will
           take them, and this one has all its time for the step
    """
    left_s = harvest.visit.left_s()
    compared = (harvest.folder / f"comparison-{setting.name}.json").is_file()
    spare_s = left_s if compared else left_s - sum(LEAST_S[kind] for kind in later)
    return min(wanted_s, spare_s if spare_s >= min(wanted_s, LEAST_SLICE_S) else left_s)


def _measured(harvest: _Harvest, setting: Setting, kind: str, **options: Any) -> Iterator[Progress]:
    """What `tune` yields for a step; all steps behind it have to be taken with what it finds."""
    visit = harvest.visit
    arguments: dict[str, Any] = {
        "site": harvest.site,
        "effort": "full",
        "seed": harvest.seed,
    } | options
    events = tune([setting.model.layers], harvest.target, harvest.log, **arguments)
    for number, event in enumerate(events, 1):
        if number == 1:
            visit.reopen(f"{later}-{setting.name}" for later in KINDS[KINDS.index(kind) + 1 :])
        yield event
        if number % 10 == 0:
            visit.went_on(f"{kind}-{setting.name}")
            _say(visit, number, event)


def _records(harvest: _Harvest, setting: Setting, stage: str) -> list[database.Record]:
    """What the harvest has of a network, two layers in one included."""
    single = [layer.workload for layer in setting.model.layers]
    keys = {workload.key for workload in (*single, *separables(single))}
    found = database.read(harvest.log.path, missing_ok=True).records
    return [record for record in found if record.stage == stage and record.workload in keys]


def _say(visit: Visit, number: int, event: Progress) -> None:
    record = event.record
    time_us = "failed" if record.time_s is None else f"{record.time_s * 1e6:.1f} µs"
    visit.progress(f"  {number} {record.stage} {record.workload} {record.kernel}: {time_us}")


def _build(harvest: _Harvest, setting: Setting) -> Any:
    weights, output = _weights(harvest), harvest.library(setting)
    return _elsewhere(_built, harvest.target, harvest.log, setting, weights, harvest.seed, output)


def _built(
    target: Target, log: Log, setting: Setting, weights: Path | None, seed: int, output: Path
) -> dict[str, Any]:
    """In a process of its own, which a compiler may end."""
    options = {"threads": 1, "weights": weights, "seed": seed, "output": output}
    return build(setting.model, target, log, **options)  # type: ignore[arg-type]


def _comparison(harvest: _Harvest, setting: Setting) -> dict[str, Any]:
    """Kept as soon as some have met; Partial when there was no time for a peer.

    While another network has no comparison, the slow peers are put off.
    """
    visit, name = harvest.visit, f"comparison-{setting.name}"
    quick = [peer for peer, known in GPU_PEERS.items() if not known.slow]
    slow = [peer for peer, known in GPU_PEERS.items() if known.slow]
    others = set(harvest.networks) - {setting.name}
    others_wait = any(_uncompared(harvest, other) for other in others)
    first = name not in visit.partial
    whole_s = float("inf") if harvest.limit_s is None else harvest.limit_s
    least_s = LEAST_S["comparison"] + (0.0 if first else LEAST_S["slow peers"])
    if visit.left_s() < min(least_s, 0.9 * whole_s) or (others_wait and not first):
        raise Unfinished  # another call has more time for it
    result = bench(
        setting.model,
        harvest.target,
        harvest.log,
        site=harvest.site,
        weights=_weights(harvest),
        seed=harvest.seed,
        library=harvest.library(setting),
        peers=quick if others_wait else None,
        rounds=9,
        deadline=visit.deadline,
        keep=lambda part: visit.keep(name, part),
        progress=lambda line: visit.progress(f"  {line}"),
    )
    late = [each["name"] for each in result["absent"] if each["reason"].startswith(NO_TIME)]
    if others_wait:
        raise PutOff(result, ", ".join([*late, *slow]))
    if late:
        raise Partial(result, ", ".join(late))
    return result


def _uncompared(harvest: _Harvest, network: str) -> bool:
    """Whether a network has no comparison, and none that has failed."""
    name = f"comparison-{network}"
    return name not in harvest.visit.ended and not (harvest.folder / f"{name}.json").is_file()


def _profile(harvest: _Harvest, setting: Setting) -> dict[str, Any]:
    """By layer as the log has it, and by kernel as the GPU did it."""
    from tune import profile_cuda

    layers = explain(setting.model, harvest.target, harvest.log, threads=1, code=False)
    images = as_input(random_images(setting.model, harvest.seed), setting.model.dtype)
    try:
        kernels: Any = _elsewhere(profile_cuda.profile, harvest.library(setting), images)
    except (WorkerError, WorkerCrash, WorkerTimeout) as error:
        kernels = str(error)  # a profiler may be forbidden; the layers are there all the same
    return {"layers": layers, "kernels": kernels}


def _weights(harvest: _Harvest) -> Path | None:
    """ImageNet's, or where nothing can read their file, random ones in a form that can be read."""
    if find_spec("safetensors") is not None:
        return None
    import torch

    from tune import eager, weights

    path = harvest.folder / "random.pt"
    if not path.is_file():
        model = MobileNet()
        state = eager.from_weights(weights.random(model, harvest.seed), model).state_dict()
        torch.save(state, path)
    return path


_elsewhere = partial(elsewhere, timeout_s=STEP_TIMEOUT_S)


def _printed(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()
