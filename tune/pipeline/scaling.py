"""A network on more cores: what a log knows of few of them, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any

from kernels import kernel
from kernels.space import Config, Space
from kernels.te.tasks import SPLITS, grids
from kernels.workload import Separable, Workload, parse, separables
from targets import machines
from targets.target import Target
from tune.errors import GateError, SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.multicore import SOURCES, Cores, Part, apiece_s, fastest, floor_s, terms, total
from tune.pipeline.records import Log
from tune.plan import Choice, plan, winner
from tune.transfer import Known

THREADS = (1, 2, 4, 8, 16, 32, 64)
MOST_THREADS = 1024


def scaling(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    threads: Sequence[int] = THREADS,
    memory_bytes_per_s: float | None = None,
    probe: bool = False,
) -> dict[str, Any]:
    """What an inference takes on so many threads, and what as many cores with one each get done.

    memory_bytes_per_s  that all cores get together; by default what `Cores` assumes
    probe               measure what this machine's cores cost one another instead of assuming it

    GateError when `log` has no times on one thread to start from, UsageError for too many threads,
    SetupError when code for `target` does not run here on several.
    """
    if max(threads) > MOST_THREADS:
        raise UsageError(
            f"threads are {max(threads)}; expected at most {MOST_THREADS}; ask for fewer"
        )
    found = _Recorded(model, target, log)
    probed: dict[str, Any] = _probe(target) if probe else {}
    given: dict[str, Any] = {}
    if memory_bytes_per_s is not None:
        given["memory_bytes_per_s"] = memory_bytes_per_s
    cores = Cores(**probed | given)
    most = max(threads)
    best = fastest(found.planned(most), most, cores)
    return {
        "model": model.name,
        "batch": model.batch,
        "dtype": model.dtype,
        "device": target.device,
        "recorded_threads": list(found.threads),
        "core_flops": found.core_flops,
        "layers": len(model.layers),
        "carried_over": found.carried_over,
        "cores": asdict(cores),
        "sources": SOURCES
        | dict.fromkeys(probed, "measured now, on this machine")
        | dict.fromkeys(given, "given"),
        "rows": [_row(model, found, count, cores) for count in threads],
        "tasks": found.tasks(most),
        "fastest": {"threads": best, "seconds": total(found.planned(most), best, cores).seconds},
        "check": [
            row for count in found.threads[1:] for row in found.check(count, Cores(**probed))
        ],
    }


def _row(model: MobileNet, found: _Recorded, threads: int, cores: Cores) -> dict[str, Any]:
    """The ways to use so many threads, each with the floor of what it does at a time."""
    workloads = [layer.workload for layer in model.layers]

    def least_s(count: int) -> float:
        return floor_s(workloads, count, cores, found.core_flops)

    row: dict[str, Any] = {"threads": threads}
    for name, parts in (
        ("planned", found.planned(threads)),
        ("divided", found.divided(threads, cores)),
    ):
        took = total(parts, threads, cores)
        row[name] = {
            "floor_s": least_s(threads),
            "seconds": took.seconds,
            "images_per_s": model.batch / took.seconds,
            "kernels": len(parts),
            "terms": asdict(took),
        }
    each_s = apiece_s(found.planned(1), threads, cores)
    row["apiece"] = {
        "floor_s": least_s(1),
        "seconds": each_s,
        "images_per_s": threads * model.batch / each_s,
    }
    return row


def _probe(target: Target) -> dict[str, float]:
    """What this machine's clock says of its cores. SetupError where it cannot tell."""
    from tune.runners.relay import measure

    machine = machines(target.kind)
    if not machine.can_run(target) or machine.cores() < 2:
        raise SetupError(
            f"this machine cannot run code for {target.device} on several cores; expected one that "
            f"can; leave --probe out"
        )
    return measure(target, machine.cores(), Cores().cores_per_l3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alone:
    """What is known of a workload on one thread; `exact` unless another shape's is carried over."""

    kernel: str
    config: Config
    seconds: float
    exact: bool


class _Recorded:
    """What a log knows of a network's layers on one thread and on more.

    threads       counts that it has measured, the first of which is 1
    core_flops    multiply-add peak of one core, FLOP/s
    carried_over  layers whose time is that of another shape, by multiply-adds
    """

    def __init__(self, model: MobileNet, target: Target, log: Log) -> None:
        self._layers, self._target = model.layers, target
        self._records = [
            record
            for record in log.records()
            if (record.target, record.device) == (target.kind, target.device)
            and record.estimator is None
            and record.checked
        ]
        self.threads = tuple(sorted({1} | {record.threads for record in self._records}))
        self._known: dict[Workload, _Alone | None] = {}
        self._plans: dict[tuple[int, bool], tuple[Choice, ...]] = {}
        self._spaces: dict[tuple[Workload, str], Space] = {}
        self._plan(1)  # which tells of what no kernel computes
        alone = [self._alone(layer.workload) for layer in self._layers]
        lacking = [
            layer.name for layer, known in zip(self._layers, alone, strict=True) if known is None
        ]
        if lacking:
            raise GateError(
                f"no measurement on one thread of {target.device} in {log.path} for "
                f"{', '.join(lacking)}; expected one of each kind of layer, since the model starts "
                f"from what one core does; run: python -m tune run --target {target.kind} "
                f"--threads 1"
            )
        # Two layers in one that only more threads have tried stay apart: the model starts from one.
        pairs = separables([layer.workload for layer in self._layers])
        if any(self._alone(both) is None for both in pairs):
            self._records = [
                record
                for record in self._records
                if not isinstance(parse(record.workload), Separable)
            ]
        self._plans.clear()
        single = [record for record in self._records if record.threads == 1]
        self.core_flops = median(record.peak_flops for record in single if record.peak_flops)
        self.carried_over = sum(known is not None and not known.exact for known in alone)

    def planned(self, threads: int) -> list[Part]:
        """The kernels as planned for the largest count measured that is no larger."""
        return [self._part(one.workload, one.config) for one in self._plan(threads)]

    def tasks(self, threads: int) -> list[dict[str, Any]]:
        """As planned: of each kernel its name and the tasks of its parallel loops."""
        return [
            {
                "name": one.name,
                "workload": one.workload.key,
                "tasks": [grid.tasks for grid in grids(one.workload, one.config)],
            }
            for one in self._plan(threads)
        ]

    def divided(self, threads: int, cores: Cores) -> list[Part]:
        """The kernels split as the model likes best, and two layers in one where it does.

        On one thread, where nothing is split, as planned: what met in turns tells more.
        """
        if threads == 1:
            return self.planned(1)

        def took_s(*parts: Part) -> float:
            return total(parts, threads, cores).seconds

        apart = [
            self._split(one.workload, one.kernel, one.config, threads, cores)
            for one in self._plan(threads, fuse=False)
        ]
        found: list[Part] = []
        while apart:
            first, *others = apart
            both = Separable.of(first.workload, others[0].workload) if others else None
            known = None if both is None else self._alone(both)
            if both is not None and known is not None:
                together = self._split(both, known.kernel, known.config, threads, cores)
                if took_s(together) < took_s(first, others[0]):
                    first, others = together, others[1:]
            found.append(first)
            apart = others
        return found

    def check(self, threads: int, cores: Cores) -> list[dict[str, Any]]:
        """By kind of layer, in sum last, what the model says and what is recorded; nothing where
        some layer has no record of its own.
        """
        choices = self._plan(threads)
        if self.carried_over or any(choice.why != "measured" for choice in choices):
            return []
        sums: dict[str, list[float]] = {}
        for choice in choices:
            part = self._part(choice.workload, choice.config)
            times = (part.alone_s, terms(part, threads, cores).seconds, choice.time_s or 0.0)
            for kind in (type(choice.workload).__name__.lower(), "all"):
                sums[kind] = [a + b for a, b in zip(sums.get(kind, [0.0] * 3), times, strict=True)]
        names = ("alone_s", "predicted_s", "recorded_s")
        return [
            {"threads": threads, "kind": kind} | dict(zip(names, sums[kind], strict=True))
            for kind in sorted(sums, key=lambda kind: (kind == "all", kind))
        ]

    def _plan(self, threads: int, *, fuse: bool = True) -> tuple[Choice, ...]:
        known = max(count for count in self.threads if count <= threads)
        if (known, fuse) not in self._plans:
            self._plans[known, fuse] = plan(
                self._layers, self._records, self._target, known, fuse=fuse
            )
        return self._plans[known, fuse]

    def _part(self, workload: Workload, config: Config) -> Part:
        known = self._alone(workload)
        assert known is not None, "what is planned was measured on one thread"
        return Part(workload=workload, grids=grids(workload, config), alone_s=known.seconds)

    def _split(
        self, workload: Workload, name: str, config: Config, threads: int, cores: Cores
    ) -> Part:
        """With the grids that take least, all else as in the kernel's `config`."""
        space = self._space(workload, name)
        free = [knob for knob in space.knobs if knob.name in SPLITS]
        names = [knob.name for knob in free]
        configs = [
            config | dict(zip(names, values, strict=True))
            for values in product(*(knob.choices for knob in free))
        ]
        parts = [self._part(workload, one) for one in configs if one in space]
        return min(parts, key=lambda part: terms(part, threads, cores).seconds)

    def _alone(self, workload: Workload) -> _Alone | None:
        """On one thread in the network, or of the nearest shape that was measured so."""
        if workload not in self._known:
            self._known[workload] = self._measured(workload) or self._carried(workload)
        return self._known[workload]

    def _measured(self, workload: Workload) -> _Alone | None:
        record = winner(workload, self._records, self._target, 1, None)
        if record is None or record.time_s is None:
            return None
        return _Alone(kernel=record.kernel, config=record.config, seconds=record.time_s, exact=True)

    def _carried(self, workload: Workload) -> _Alone | None:
        single = [record for record in self._records if record.threads == 1]
        known = Known(records=single, target=self._target, threads=1)
        for name, near in known.standings(workload).items():
            config = self._space(workload, name).nearest(near.record.config)
            return _Alone(kernel=name, config=config, seconds=near.time_s, exact=False)
        return None

    def _space(self, workload: Workload, name: str) -> Space:
        if (workload, name) not in self._spaces:
            self._spaces[workload, name] = kernel(name).space(workload, self._target)
        return self._spaces[workload, name]
