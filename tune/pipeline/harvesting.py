"""All that a short visit to a GPU can bring, step by step, into one folder.

A step that has ended is not done again: whoever was interrupted runs the same command once more. A
step that fails or is cut off is tried again then, and given up after MOST_TRIES without progress;
the others go on without it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kernels.workload import Workload
from targets import machines
from targets.target import Target
from tune import suite
from tune.errors import SeptuneError, SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.peers import GPU_PEERS
from tune.pins import check_pins, installed
from tune.pipeline.building import build
from tune.pipeline.comparing import bench
from tune.pipeline.explaining import explain
from tune.pipeline.records import Log
from tune.pipeline.site import Site
from tune.pipeline.tuning import FINALS_SHARE, Progress, tune
from tune.runners.protocol import Entry
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

MOST_TRIES = 3
CHECKED_AT_ONCE = 32
STEP_TIMEOUT_S = 300.0
LEAST_FINALS_S = 90.0  # a network has about 30 workloads, and each takes a few seconds
SLOW_PEERS = ("torch-max-autotune",)  # left out when a comparison was cut off before
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


@dataclass(slots=True, kw_only=True)
class _Visit:
    """Where a harvest stands.

    tries    of each step so far, since it last went on
    ended    step -> None, or why it failed
    spent_s  of each setting's time for tuning
    """

    target: Target
    folder: Path
    budget_s: float
    seed: int
    progress: Callable[[str], None]
    deadline: float | None
    tries: dict[str, int] = field(default_factory=dict)
    ended: dict[str, str | None] = field(default_factory=dict)
    spent_s: dict[str, float] = field(default_factory=dict)

    @property
    def log(self) -> Log:
        """Estimates for the device and records of others seed the search."""
        own = self.folder / "logs" / self.target.kind / f"{self.target.device}.jsonl"
        known = Log.at(None, self.target)
        hints = tuple(path for path in (known.path, *known.hints) if path.is_file())
        return Log(path=own, hints=hints)

    def library(self, setting: Setting) -> Path:
        return self.folder / f"mobilenet_v1-{setting.name}.so"

    def left_s(self) -> float:
        """Until this command has to end."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def read(self) -> None:
        path = self.folder / "state.json"
        if path.is_file():
            state = json.loads(path.read_text())
            self.tries, self.ended = state["tries"], state["ended"]
            self.spent_s = state["spent_s"]

    def write(self) -> None:
        state = {"tries": self.tries, "ended": self.ended, "spent_s": self.spent_s}
        _write(self.folder / "state.json", state)

    def went_on(self, name: str) -> None:
        """A step did some of its work for good."""
        self.tries[name] = 0
        self.write()


Step = Callable[[_Visit], Any]
# What a step may raise: ours, a worker's, and of libraries that are missing or find no GPU.
FAILURES = (
    *(SeptuneError, WorkerError, WorkerCrash, WorkerTimeout),
    *(ImportError, LookupError, OSError, RuntimeError, ValueError),
)


class _Unfinished(Exception):
    """The step needs another command to go on."""


def harvest(
    target: Target,
    folder: Path,
    *,
    budget_s: float,
    limit_s: float | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Every step's result by its name; each is also FOLDER/<step>.json.

    budget_s  for tuning, of all settings together
    limit_s   after which this call starts nothing new; another one goes on
    only      names of some SETTINGS, which share the budget; all when empty

    Under `state` which steps have ended, why some failed, and whether something is left to do.
    SetupError when code for `target` does not run here.
    """
    check_pins()
    settings = _chosen(only)
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
    visit = _Visit(
        target=target,
        folder=folder,
        budget_s=budget_s,
        seed=seed,
        progress=progress,
        deadline=None if limit_s is None else time.monotonic() + limit_s,
    )
    visit.read()
    left = [name for name, step in _steps(settings) if not _ended(visit, name, step)]
    results: dict[str, Any] = {
        path.stem: json.loads(path.read_text())
        for name, _ in _steps(settings)
        if (path := folder / f"{name}.json").is_file()
    }
    results["state"] = {"ended": visit.ended, "left": left, "spent_s": visit.spent_s}
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


def _ended(visit: _Visit, name: str, step: Step) -> bool:
    """Do a step unless it has ended; whether it has."""
    tries = visit.tries.get(name, 0)
    if visit.ended.get(name, "failed") is None or tries >= MOST_TRIES:
        if name not in visit.ended:
            visit.ended[name] = f"cut off {tries} times"
            visit.write()
        return True
    if visit.left_s() <= 0:
        return False
    visit.progress(f"{name} …")
    visit.tries[name] = tries + 1
    visit.write()
    start = time.monotonic()
    try:
        result = step(visit)
    except _Unfinished:
        visit.went_on(name)
        return False
    except FAILURES as error:
        visit.ended[name] = f"{type(error).__name__}: {error}"
    else:
        _write(visit.folder / f"{name}.json", result)
        visit.ended[name] = None
    visit.write()
    outcome = visit.ended[name] or "done"
    visit.progress(f"{name}: {outcome}, {time.monotonic() - start:.0f} s")
    return visit.ended[name] is None or visit.tries[name] >= MOST_TRIES


def _steps(settings: Sequence[Setting]) -> list[tuple[str, Step]]:
    """All, one network after the other, so that some have everything when the time runs out."""
    steps: list[tuple[str, Step]] = [
        ("machine", _machine),
        ("correctness", _correctness),
        ("ceilings", _ceilings),
    ]
    kinds = (
        ("tuning", _tuning),
        ("finals", _finals),
        ("build", _build),
        ("comparison", _comparison),
        ("profile", _profile),
    )
    for each in settings:
        steps += [(f"{kind}-{each.name}", _at(step, each)) for kind, step in kinds]
    return steps


def _at(step: Callable[[_Visit, Setting], Any], setting: Setting) -> Step:
    return lambda visit: step(visit, setting)


def _machine(visit: _Visit) -> dict[str, Any]:
    """What was there, so that numbers can be understood later."""
    return {
        "target": visit.target.device,
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


def _correctness(visit: _Visit) -> dict[str, Any]:
    """What `pytest -m gpu` asks of kernels, which needs no pytest here."""
    from tune.runners.gpu import GpuRunner

    journal = visit.folder / "correctness.jsonl"
    known = _lines(journal)
    todo = [entry for entry in suite.entries(visit.target) if _key(entry) not in known]
    with GpuRunner(visit.target, builders=os.cpu_count() or 1) as runner:
        for first in range(0, len(todo), CHECKED_AT_ONCE):
            if visit.left_s() <= 0:
                raise _Unfinished
            part = todo[first : first + CHECKED_AT_ONCE]
            for entry, outcome in zip(part, runner.check(part), strict=True):
                known[_key(entry)] = outcome.error
                with journal.open("a") as file:
                    file.write(json.dumps([*_key(entry), outcome.error]) + "\n")
                if outcome.error:
                    visit.progress(f"  {entry.kernel} {entry.workload.key}: {outcome.error}")
            visit.went_on("correctness")
            visit.progress(f"  {first + len(part)} of {len(todo)} candidates checked")
    failed = [[*key, error] for key, error in known.items() if error is not None]
    return {"checked": len(known), "failed": failed}


def _ceilings(visit: _Visit) -> dict[str, Any]:
    from tune import ceilings

    return asdict(_elsewhere(ceilings.ceilings))


def _tuning(visit: _Visit, setting: Setting) -> dict[str, Any]:
    """Trials by network gain until the setting's share of the budget is spent."""
    budget_s = visit.budget_s * setting.share * (1 - FINALS_SHARE)
    before_s = visit.spent_s.get(setting.name, 0.0)
    slice_s = min(budget_s - before_s, visit.left_s())
    done = failed = 0
    if slice_s > 0:
        for event in _tuned(visit, setting, budget_s=slice_s, finals=False):
            done, failed = event.done, failed + (event.record.error is not None)
            visit.spent_s[setting.name] = before_s + event.elapsed_s
            if done % 10 == 0:
                visit.went_on(f"tuning-{setting.name}")
                _say(visit, event)
        if slice_s < budget_s - before_s:
            raise _Unfinished
    return {"trials": done, "failed": failed, "spent_s": visit.spent_s.get(setting.name, 0.0)}


def _finals(visit: _Visit, setting: Setting) -> dict[str, Any]:
    """The fastest of each workload in turns, those that have not met yet."""
    share_s = visit.budget_s * setting.share * FINALS_SHARE
    budget_s = min(max(share_s, LEAST_FINALS_S), visit.left_s())
    done = 0
    for event in _tuned(visit, setting, budget_s=budget_s, trials=0):
        done += 1
        if done % 10 == 0:
            visit.went_on(f"finals-{setting.name}")
            _say(visit, event)
    if visit.left_s() <= 0:
        raise _Unfinished
    return {"finalists": done}


def _tuned(visit: _Visit, setting: Setting, **options: Any) -> Any:
    networks = [setting.model.layers]
    arguments: dict[str, Any] = {"site": Site(), "effort": "full", "seed": visit.seed} | options
    return tune(networks, visit.target, visit.log, **arguments)


def _say(visit: _Visit, event: Progress) -> None:
    record = event.record
    time_us = "failed" if record.time_s is None else f"{record.time_s * 1e6:.1f} µs"
    visit.progress(f"  {event.done} {record.stage} {record.workload} {record.kernel}: {time_us}")


def _build(visit: _Visit, setting: Setting) -> Any:
    output = visit.library(setting)
    return _elsewhere(_built, visit.target, visit.log, setting, _weights(visit), visit.seed, output)


def _built(
    target: Target, log: Log, setting: Setting, weights: Path | None, seed: int, output: Path
) -> dict[str, Any]:
    """In a process of its own, which a compiler may end."""
    options = {"threads": 1, "weights": weights, "seed": seed, "output": output}
    return build(setting.model, target, log, **options)  # type: ignore[arg-type]


def _comparison(visit: _Visit, setting: Setting) -> dict[str, Any]:
    cut_off = visit.tries[f"comparison-{setting.name}"] == MOST_TRIES
    return bench(
        setting.model,
        visit.target,
        visit.log,
        site=Site(),
        weights=_weights(visit),
        seed=visit.seed,
        library=visit.library(setting),
        peers=[name for name in GPU_PEERS if not (cut_off and name in SLOW_PEERS)],
        rounds=15,
        progress=lambda line: visit.progress(f"  {line}"),
    )


def _profile(visit: _Visit, setting: Setting) -> dict[str, Any]:
    """By layer as the log has it, and by kernel as the GPU did it."""
    from tune import profile

    layers = explain(setting.model, visit.target, visit.log, threads=1, code=False)
    try:
        kernels: Any = _elsewhere(profile.profile, visit.library(setting))
    except (WorkerError, WorkerCrash, WorkerTimeout) as error:
        kernels = str(error)  # a profiler may be forbidden; the layers are there all the same
    return {"layers": layers, "kernels": kernels}


def _weights(visit: _Visit) -> Path | None:
    """ImageNet's, or where nothing can read their file, random ones in a form that can be read."""
    if find_spec("safetensors") is not None:
        return None
    import torch

    from tune import eager, weights

    path = visit.folder / "random.pt"
    if not path.is_file():
        model = MobileNet()
        state = eager.from_weights(weights.random(model, visit.seed), model).state_dict()
        torch.save(state, path)
    return path


def _elsewhere(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own."""
    worker = Worker()
    try:
        return worker.call(function, *arguments, timeout_s=STEP_TIMEOUT_S)
    finally:
        worker.stop()


def _key(entry: Entry) -> tuple[str, str, str]:
    workload: Workload = entry.workload
    return workload.key, entry.kernel, json.dumps(entry.config, sort_keys=True)


def _lines(journal: Path) -> dict[tuple[str, str, str], str | None]:
    """What is known already; a torn last line is not."""
    found: dict[tuple[str, str, str], str | None] = {}
    for line in journal.read_text().splitlines() if journal.is_file() else ():
        try:
            workload, name, config, error = json.loads(line)
        except ValueError:
            continue
        found[workload, name, config] = error
    return found


def _write(path: Path, value: Any) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def _printed(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()
