"""Whether a log still serves: a record for each layer, of this very machine and these kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernels import KERNELS
from kernels.version import version
from kernels.workload import Workload
from targets.target import Target
from tune.database import Record
from tune.errors import GateError
from tune.mobilenet import MobileNet
from tune.pins import check_pins
from tune.pipeline.records import Log
from tune.plan import Choice, plan


def check(
    model: MobileNet, target: Target, log: Log, *, threads: int, allow_estimates: bool = False
) -> dict[str, Any]:
    """How each layer would be built, all from records of their own. Builds and measures nothing.

    GateError as `require` says.
    """
    check_pins()
    records = log.records(missing_ok=False)
    choices = plan(model.layers, records, target, threads)
    require(choices, records, target, log, threads=threads, allow_estimates=allow_estimates)
    layers = [
        {"name": layer.name, "kernel": choice.kernel, "config": choice.config, "why": choice.why}
        for choice in choices
        for layer in choice.layers
    ]
    return {"log": str(log.path), "device": target.device, "threads": threads, "layers": layers}


def require(
    choices: Sequence[Choice],
    records: Sequence[Record],
    target: Target,
    log: Log,
    *,
    threads: int,
    allow_estimates: bool,
) -> None:
    """GateError, naming each layer and why, unless all choices come from records of their own.

    allow_estimates  whether an estimate will do, or what a sibling has measured
    """
    enough = ("measured", "sibling", "estimated") if allow_estimates else ("measured",)
    lacking: dict[str, list[str]] = {}
    for choice in choices:
        if choice.why not in enough:
            reason = _reason(choice, records, target, threads, allow_estimates)
            lacking.setdefault(reason, []).extend(layer.name for layer in choice.layers)
    if lacking:
        told = ", ".join(f"{', '.join(names)} ({reason})" for reason, names in lacking.items())
        raise GateError(
            f"no record in {log.path} for {told}; expected one of each layer, "
            f"measured{' or estimated' * allow_estimates} on {target.device}, threads {threads}, "
            f"by the present kernels; run: python -m tune run --target {target.kind}"
        )


def _reason(
    choice: Choice,
    records: Sequence[Record],
    target: Target,
    threads: int,
    allow_estimates: bool,
) -> str:
    """What the record that is least wrong for a choice's workload lacks."""
    lacks = [
        _lack(record, choice.workload, target, threads, allow_estimates)
        for record in records
        if record.workload == choice.workload.key
    ]
    return max(lacks)[1] if lacks else "none"


def _lack(
    record: Record, workload: Workload, target: Target, threads: int, allow_estimates: bool
) -> tuple[int, str]:
    """What is wrong with a record of `workload`, and how far it got before that."""
    if record.target != target.kind:
        return 0, f"only of {record.target}"
    if record.device != target.device:
        return 1, f"only of device {record.device}"
    now = "not known"
    if record.kernel in KERNELS:
        now = version(record.kernel, target.kind, workload.dtype)
    if record.kernel_version != now:
        return 2, f"only of {record.kernel} {record.kernel_version}, which is {now} now"
    if record.estimator is not None and not allow_estimates:
        return 4, f"only an estimate, by {record.estimator}"
    if record.threads != (threads if record.estimator is None else 1):
        return 3, f"only with threads {record.threads}"
    if not record.checked or not record.seconds:
        return 5, "only failures"
    return 6, "only configs that the kernel no longer takes"
