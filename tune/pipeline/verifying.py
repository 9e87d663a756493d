"""Recorded winners measured again: still right, and still as fast?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from kernels.workload import moved_bytes
from targets.target import Target
from tune.database import Record
from tune.errors import GateError
from tune.mobilenet import MobileNet
from tune.pins import check_pins
from tune.pipeline.records import Log
from tune.pipeline.site import Site, runner_at
from tune.plan import Choice, plan
from tune.regression import MOST, Verdict, judge
from tune.runners.protocol import Entry, Outcome, Runner


@dataclass(slots=True, kw_only=True)
class _Case:
    """A winner under test: its record, what was measured of it again, or what is wrong with it.

    slack  of each pair, how many times as long as recorded its bytes alone take by now, at least 1
    """

    choice: Choice
    record: Record
    layers: int
    ratios: list[float] = field(default_factory=list)
    slack: list[float] = field(default_factory=list)
    now_s: list[float] = field(default_factory=list)
    verdict: Verdict | None = None
    error: str | None = None

    @property
    def open(self) -> bool:
        return self.error is None and not (self.verdict and self.verdict.sure)


def verify(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    site: Site,
    tolerance: float,
    progress: Callable[[str], None],
    runner: Runner | None = None,
) -> dict[str, Any]:
    """What became of each recorded winner of the network's layers, as data.

    Each is measured as its record was, every time after the machine's own peak, in rounds over all
    winners until there is a verdict on each. An estimate is made anew once, for it is exact.

    site       whose threads and estimator the records were made with
    tolerance  slowdown that is accepted, e.g. 0.1
    runner     measures instead of what there is at `site`
    GateError when no layer has a record to verify.
    """
    check_pins()
    records = log.records(missing_ok=False)
    choices = plan(model.layers, records, target, site.threads)
    cases = _cases(choices, site.estimator)
    if not cases:
        raise GateError(
            f"no record in {log.path} to verify; expected measurements on {target.device}, threads "
            f"{site.threads}, by the present kernels; run: python -m tune log check --target "
            f"{target.kind}, which tells what is wrong"
        )
    apart = plan(model.layers, records, target, site.threads, fuse=False)
    network = [_entry(choice) for choice in apart]
    with runner or runner_at(site, target) as measuring:
        for number in range(1 if site.estimator else MOST):
            waiting = [case for case in cases if case.open]
            if not waiting:
                break
            progress(f"round {number + 1} of at most {MOST}: {len(waiting)} winners")
            turn = number % len(waiting)
            for case in waiting[turn:] + waiting[:turn]:
                _measure(case, measuring, network, tolerance)
    return {
        "device": target.device,
        "threads": site.threads,
        "estimator": site.estimator,
        "tolerance": tolerance,
        "unverified": [
            layer.name
            for choice in choices
            if not any(case.choice.workload == choice.workload for case in cases)
            for layer in choice.layers
        ],
        "rows": [_row(case, tolerance) for case in cases],
    }


def failures(result: dict[str, Any]) -> GateError | None:
    """The error that a result of `verify` amounts to; None when all is well."""
    bad = [row for row in result["rows"] if row["verdict"] != "ok"]
    if not bad:
        return None
    told = ", ".join(
        f"{row['name']}: {row['error'] or '{:.2f} times as long'.format(row['ratio'])}"
        for row in bad
    )
    return GateError(
        f"{told}; expected right results in at most {1 + result['tolerance']:.2f} times the "
        f"recorded time; see what changed, or tune again: python -m tune run"
    )


def _cases(choices: Sequence[Choice], estimator: str | None) -> list[_Case]:
    """One a distinct workload whose record was made that way: measured, or by the estimator."""
    counts = Counter(choice.workload for choice in choices)
    first = {choice.workload: choice for choice in reversed(choices)}
    cases = []
    for workload, layers in counts.items():
        choice = first[workload]
        record = choice.record
        own = choice.why in ("measured", "estimated")
        if own and record is not None and record.estimator == estimator:
            cases.append(_Case(choice=choice, record=record, layers=layers))
    return cases


def _measure(case: _Case, runner: Runner, network: Sequence[Entry], tolerance: float) -> None:
    """One more pair: the machine's peak and memory rate, then the winner, as it was recorded."""
    record, workload = case.record, case.choice.workload
    peak_flops = runner.peak_flops(workload.dtype)
    memory_rate = runner.memory_bytes_per_s() or math.inf
    entry = _entry(case.choice)
    outcomes: Sequence[Outcome] = ()
    if record.stage == "final":
        outcomes = runner.compete(network, [entry])
    (outcome,) = outcomes or [outcome for _, outcome in runner.measure([entry])]
    if outcome.error is not None:
        case.error = outcome.error
        return
    # The fastest of each, as the peak is the best of some runs: company only ever adds time.
    now_s = min(outcome.seconds)
    case.now_s.append(now_s)
    expected_s = min(record.seconds) * (record.peak_flops or peak_flops) / peak_flops
    memory_s = moved_bytes(workload) / memory_rate
    case.slack.append(max(1.0, memory_s / expected_s))
    case.ratios.append(now_s / max(expected_s, memory_s))
    case.verdict = judge(case.ratios, tolerance)


def _entry(choice: Choice) -> Entry:
    return Entry(workload=choice.workload, kernel=choice.kernel, config=choice.config)


def _row(case: _Case, tolerance: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": case.choice.name,
        "layers": case.layers,
        "workload": case.choice.workload.key,
        "stage": case.record.stage,
        "recorded_s": min(case.record.seconds),
        "error": case.error,
    }
    if case.error is not None or case.verdict is None:
        return row | {"verdict": "failed", "now_s": None, "ratio": None, "detectable": None}
    exact = case.record.estimator is not None
    verdict = case.verdict
    slower = verdict.ratio > 1 + tolerance if exact else verdict.slower
    return row | {
        "verdict": "slower" if slower else "ok",
        "now_s": median(case.now_s),
        "ratio": verdict.ratio,
        "pairs": verdict.pairs,
        "detectable": 1 + tolerance if exact else verdict.detectable * median(case.slack),
    }
