"""The one place where the stages meet. Yields or returns results and prints nothing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kernels import KERNELS, kernel, kernels_for
from kernels.space import Config, Space
from kernels.version import version
from kernels.workload import Workload, flops, parse
from targets import machines
from targets.target import Target
from tune import database, images
from tune import weights as weights_module
from tune.bench import Rounds, compare
from tune.compile import compile_network, manifest, write_manifest
from tune.database import Record
from tune.errors import GateError, SetupError, UsageError
from tune.graph import assemble
from tune.mobilenet import Layer, MobileNet
from tune.peers import PEERS
from tune.pins import PINS, check_pins
from tune.plan import Choice, plan
from tune.runners.local import FINAL, TRIAL, LocalRunner
from tune.runners.protocol import Entry, Outcome
from tune.runtime import load
from tune.scheduler import Task, choose
from tune.search import expected_gain, propose
from tune.transfer import similar
from tune.weights import Weights, fold

TRIALS = {"quick": 24, "full": 96, "max": 1 << 30}  # a workload and kernel
BATCH = 8
FINALISTS = 6
FINALS_SHARE = 0.2  # of the budget
LOGS = Path(__file__).resolve().parent.parent / "logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Where records go, and the records that may be used.

    path   file that new records are appended to
    hints  further files, of other devices, whose configs may seed a search or fill a gap
    """

    path: Path
    hints: tuple[Path, ...] = ()

    @classmethod
    def at(cls, path: Path | None, target: Target) -> Log:
        """The log at `path` alone; by default the device's own, the other devices' as hints."""
        if path is not None:
            return cls(path=path)
        own = LOGS / target.kind / f"{target.device}.jsonl"
        return cls(path=own, hints=tuple(p for p in sorted(own.parent.glob("*.jsonl")) if p != own))

    def records(self, *, missing_ok: bool = True) -> tuple[Record, ...]:
        """All records, those of `path` first. LogError when a file cannot be read."""
        found = database.read(self.path, missing_ok=missing_ok).records
        for hint in self.hints:
            found += database.read(hint).records
        return found


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
    threads: int,
    budget_s: float | None = None,
    trials: int | None = None,
    effort: str = "full",
    kernels: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[Progress]:
    """Measure where the network can gain most, record by record, until budget, trials or gain end.

    SetupError when this machine cannot run code for `target`, LogError when the log cannot be used.
    """
    check_pins()
    if not machines(target.kind).can_run(target):
        raise SetupError(
            f"this CPU lacks instructions of {target.device}; expected a device it can run; "
            f"leave --device out to tune for this machine"
        )
    start = time.monotonic()
    searches = _searches(layers, target, log, threads, kernels)
    done = 0
    with LocalRunner(target, threads, builders=machines(target.kind).cores()) as runner:
        recorder = _Recorder(
            target=target, threads=threads, log=log, peak_flops=runner.peak_flops()
        )

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

        while trials is None or done < trials:
            left = left_s()
            if left is not None and budget_s is not None and left < FINALS_SHARE * budget_s:
                break
            search = _next(searches, recorder.peak_flops, TRIALS[effort])
            if search is None:
                break
            count = BATCH if trials is None else min(BATCH, trials - done)
            configs = propose(
                search.space, search.history, seed=seed, count=count, seeds=search.seeds
            )
            for outcome in runner.measure(search.workload, search.kernel, configs):
                record = recorder.keep(search, "trial", outcome, TRIAL)
                search.history.append((outcome.config, record.time_s))
                done += 1
                yield progress(record, search)

        for rivals in _finalists(searches, log, target, threads):
            left = left_s()
            if left is not None and left <= 0:
                break
            choices = plan(layers, log.records(), target, threads)
            network = [_entry(c.layer.workload, c.kernel, c.config) for c in choices]
            entries = [_entry(search.workload, search.kernel, config) for search, config in rivals]
            outcomes = runner.compete(network, entries)
            for (search, _), outcome in zip(rivals, outcomes, strict=True):
                yield progress(recorder.keep(search, "final", outcome, FINAL), search)


def _entry(workload: Workload, name: str, config: Config) -> Entry:
    return Entry(workload=workload, kernel=name, config=config)


def _searches(
    layers: Sequence[Layer],
    target: Target,
    log: Log,
    threads: int,
    only: Sequence[str] | None,
) -> list[_Search]:
    """What is to be searched, with what the log already knows. UsageError for unknown kernels."""
    for name in only or ():
        if name not in KERNELS:
            raise UsageError(
                f"kernel {name!r} is not known; expected one of {', '.join(KERNELS)}; "
                f"leave --kernel out for all"
            )
    records = log.records()
    counts: dict[Workload, int] = {}
    for layer in layers:
        counts[layer.workload] = counts.get(layer.workload, 0) + 1
    searches = []
    for workload, weight in counts.items():
        for name in kernels_for(workload, target):
            if only and name not in only:
                continue
            space = kernel(name).space(workload, target)
            near = similar(records, workload, name, space, target=target, threads=threads)
            own = _own(records, workload, name, target, threads)
            searches.append(
                _Search(
                    workload=workload,
                    kernel=name,
                    weight=weight,
                    space=space,
                    size=sum(1 for _ in space),
                    seeds=[config for config, _ in near],
                    history=database.history(own),
                )
            )
    return searches


def _own(
    records: Sequence[Record], workload: Workload, name: str, target: Target, threads: int
) -> list[Record]:
    """Records of exactly this: kernel in its present version, device and threads, measured."""
    return [
        record
        for record in records
        if record.workload == workload.key
        and (record.kernel, record.kernel_version) == (name, version(name))
        and (record.target, record.device) == (target.kind, target.device)
        and record.threads == threads
        and record.estimator is None
    ]


def _next(searches: Sequence[_Search], peak_flops: float, most: int) -> _Search | None:
    """The search where the network can gain most, None when none is worth its time."""
    by_key = {f"{search.workload.key} {search.kernel}": search for search in searches}
    tasks = []
    for key, search in by_key.items():
        tried = len({tuple(sorted(config.items())) for config, _ in search.history})
        remaining = min(search.size, most) - tried
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
    chosen = choose(tasks)
    return None if chosen is None else by_key[chosen.key]


def _finalists(
    searches: Sequence[_Search], log: Log, target: Target, threads: int
) -> list[list[tuple[_Search, Config]]]:
    """Of each workload the few fastest, if there are several and not all have met before."""
    records = [record for record in log.records() if record.stage == "final"]
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
            for record in _own(records, parse(key), name, target, threads)
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
    log: Log
    peak_flops: float

    def keep(self, search: _Search, stage: str, outcome: Outcome, protocol: Any) -> Record:
        record = Record(
            workload=search.workload.key,
            kernel=search.kernel,
            kernel_version=version(search.kernel),
            config=outcome.config,
            target=self.target.kind,
            device=self.target.device,
            threads=self.threads,
            stage=stage,
            seconds=outcome.seconds,
            error=outcome.error,
            checked=outcome.checked,
            peak_flops=self.peak_flops,
            protocol=asdict(protocol),
            tvm=PINS["apache-tvm"],
            when=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        database.append(self.log.path, [record])
        return record


def winners(
    layers: Sequence[Layer], target: Target, log: Log, *, threads: int
) -> list[dict[str, Any]]:
    """One row a distinct workload: its best record, beside the default config where that ran."""
    records = log.records()
    counts: dict[Workload, int] = {}
    for layer in layers:
        counts[layer.workload] = counts.get(layer.workload, 0) + 1
    rows = []
    for workload, weight in counts.items():
        names = kernels_for(workload, target)
        own = [r for name in names for r in _own(records, workload, name, target, threads)]
        rows.append({"layers": weight} | _row(workload, own))
    return rows


def show(path: Path) -> tuple[list[dict[str, Any]], int]:
    """One row for each workload, device and thread count of a log, and the unreadable lines."""
    contents = database.read(path)
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in contents.records:
        groups.setdefault((record.device, record.workload, record.threads), []).append(record)
    rows = []
    for (device, key, threads), found in sorted(groups.items(), key=lambda item: item[0]):
        rows.append({"device": device, "threads": threads} | _row(parse(key), found))
    return rows, contents.skipped


def _row(workload: Workload, records: Sequence[Record]) -> dict[str, Any]:
    """What is known of a workload; `records` are its own, of one device and thread count."""
    first = records[0] if records else None
    winner = first and database.best(
        records,
        workload=workload.key,
        target=first.target,
        device=first.device,
        threads=first.threads,
        versions={name: version(name) for name in KERNELS},
    )
    return {
        "workload": workload.key,
        "trials": sum(r.stage == "trial" for r in records),
        "failed": sum(r.error is not None for r in records),
        "kernel": winner and winner.kernel,
        "config": winner and winner.config,
        "time_s": winner and winner.time_s,
        "default_ratio": winner and _default_ratio(workload, winner, records),
        "flops": flops(workload),
        "peak_flops": winner and winner.peak_flops,
    }


def _default_ratio(workload: Workload, winner: Record, records: Sequence[Record]) -> float | None:
    """How many times longer the kernel's default config takes, both alone; None if unknown."""
    device = machines(winner.target).DEVICES.get(winner.device)
    own = [r for r in records if r.kernel_version == winner.kernel_version]
    times = {database.canonical(config): time_s for config, time_s in database.history(own)}
    best_s = times.get(database.canonical(winner.config))
    if device is None or best_s is None:
        return None
    default = kernel(winner.kernel).space(workload, device).default
    default_s = times.get(database.canonical(default))
    return None if default_s is None else default_s / best_s


def build(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    threads: int,
    weights: Path | None,
    seed: int,
    output: Path,
    require_tuned: bool = False,
) -> dict[str, Any]:
    """Write the library at `output` and its manifest, which is returned. Measures nothing.

    weights  a checkpoint; None takes the ImageNet one where it fits the model, else random ones
    GateError, naming the layers, when `require_tuned` and some have no record of their own.
    """
    check_pins()
    if output.suffix != ".so":
        raise UsageError(f"output {output} is no .so; expected a name such as mobilenet_v1.so")
    choices = plan(model.layers, log.records(missing_ok=not require_tuned), target, threads)
    _require(choices, require_tuned, log)
    folded = fold(_weights(model, weights, seed), model)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        compile_network(assemble(choices, folded, target), target, output)
        description = manifest(model, choices, folded, target, threads, output)
        write_manifest(description, output)
    except OSError as error:
        raise UsageError(
            f"cannot write {output}: {error.strerror}; expected a writable path; choose another -o"
        ) from None
    return description


def _require(choices: Sequence[Choice], tuned: bool, log: Log) -> None:
    lacking = [choice.layer.name for choice in choices if choice.why != "measured"]
    if tuned and lacking:
        raise GateError(
            f"no record for {', '.join(lacking)} in {log.path}; expected one of each layer, made "
            f"on this device with these threads; run: python -m tune run"
        )


def _weights(model: MobileNet, path: Path | None, seed: int) -> Weights:
    """From the checkpoint at `path`, the ImageNet one, or at random."""
    source = path or weights_module.bundled(model)
    if source is None:
        return weights_module.random(model, seed)
    return weights_module.read(source, model)


def classify(
    library: Path, photos: Sequence[Path], threads: int | None = None
) -> Iterator[tuple[Path, list[tuple[float, str]]]]:
    """Of each photo the five likeliest (probability, label), likeliest first."""
    network = load(library, threads)
    batch, height, _, _ = network.input_shape
    for photo in photos:
        image = images.read(photo, height)
        logits = network(np.repeat(image, batch, axis=0))[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        probabilities = odds / odds.sum()
        names = images.labels()
        if len(names) != len(logits):
            names = tuple(f"class {index}" for index in range(len(logits)))
        top = np.argsort(-probabilities)[:5]
        yield photo, [(float(probabilities[index]), names[index]) for index in top]


def bench(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    threads: int,
    weights: Path | None,
    seed: int,
    library: Path | None,
    peers: Sequence[str] | None,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Our library, built from the log when none is given, against peers: the comparison as data."""
    check_pins()
    for name in peers or ():
        if name not in PEERS:
            raise UsageError(
                f"peer {name!r} is not known; expected some of {', '.join(PEERS)}; "
                f"leave --peers out for all that are installed"
            )
    contenders = {name: PEERS[name] for name in peers or PEERS}
    with tempfile.TemporaryDirectory(prefix="septune-") as folder:
        if library is None:
            progress("building our library from the log")
            library = Path(folder) / "bench.so"
            arguments = {"threads": threads, "weights": weights, "seed": seed, "output": library}
            build(model, target, log, **arguments)  # type: ignore[arg-type]
        progress("measuring the multiply-add peak")
        with LocalRunner(target, threads, builders=1) as runner:
            peak_flops = runner.peak_flops()
        comparison = compare(
            model,
            _weights(model, weights, seed),
            library,
            threads=threads,
            peak_flops=peak_flops,
            device=target.device,
            rounds=Rounds(count=rounds),
            peers=contenders,
            progress=progress,
        )
    return asdict(comparison)
