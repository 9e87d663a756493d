"""A build that requires records names every layer without one, and what its records lack."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels import kernel, kernels_for
from kernels.version import version
from targets import machines
from tune import database, pipeline
from tune.database import Record
from tune.errors import GateError, LogError
from tune.mobilenet import Layer, MobileNet

HOST = machines("x86").DEVICES["znver4"]
MODEL = MobileNet(alpha=0.25, resolution=32)
LAYERS = {layer.name: layer for layer in MODEL.layers}


def record(layer: Layer, **changes: Any) -> Record:
    """The default config of a layer, measured on one thread."""
    name = kernels_for(layer.workload, HOST)[0]
    fields: dict[str, Any] = {
        "workload": layer.workload.key,
        "kernel": name,
        "kernel_version": version(name, "x86", layer.workload.dtype),
        "config": kernel(name).space(layer.workload, HOST).default,
        "target": "x86",
        "device": "znver4",
        "threads": 1,
        "stage": "trial",
        "seconds": (1e-4,),
        "error": None,
        "checked": True,
        "tvm": "0.27.0",
        "when": "2026-01-01T00:00:00+00:00",
    }
    return Record(**fields | changes)


WHOLE = {layer.workload.key: record(layer) for layer in MODEL.layers}
STEM, HEAD = LAYERS["stem"], LAYERS["head"]


def checked(tmp_path: Path, records: Any, **options: Any) -> dict[str, Any]:
    log = tmp_path / "log"
    log.unlink(missing_ok=True)
    database.append(log, records)
    return pipeline.check(MODEL, HOST, pipeline.Log(path=log), threads=1, **options)


def lacking(tmp_path: Path, records: Any, **options: Any) -> dict[str, str]:
    """The reasons that are told, by layer."""
    with pytest.raises(GateError) as error:
        checked(tmp_path, records, **options)
    told = str(error.value).removeprefix(f"no record in {tmp_path / 'log'} for ")
    told, _, rest = told.partition("; expected one of each layer, ")
    wanted = "measured or estimated" if options.get("allow_estimates") else "measured"
    assert rest == (
        f"{wanted} on znver4, threads 1, by the present kernels; "
        f"run: python -m tune run --target x86"
    )
    groups = re.findall(r"([^()]+) \((.*?)\)(?:, |$)", told)
    return {name: reason for names, reason in groups for name in names.split(", ")}


def test_a_whole_log_is_enough(tmp_path: Path) -> None:
    plan = checked(tmp_path, WHOLE.values())
    assert [layer["name"] for layer in plan["layers"]] == [layer.name for layer in MODEL.layers]
    assert {layer["why"] for layer in plan["layers"]} == {"measured"}
    assert (plan["device"], plan["threads"]) == ("znver4", 1)


SPOILS: dict[str, tuple[Callable[[Record], list[Record]], str]] = {
    "missing": (lambda one: [], "none"),
    "old": (
        lambda one: [replace(one, kernel_version="0" * 12)],
        f"only of te.conv {'0' * 12}, which is {version('te.conv', 'x86', 'float32')} now",
    ),
    "gone": (
        lambda one: [replace(one, kernel="te.gone")],
        f"only of te.gone {version('te.conv', 'x86', 'float32')}, which is not known now",
    ),
    "device": (lambda one: [replace(one, device="znver3")], "only of device znver3"),
    "target": (lambda one: [replace(one, target="arm64", device="cortex-a76")], "only of arm64"),
    "threads": (lambda one: [replace(one, threads=2)], "only with threads 2"),
    "estimate": (lambda one: [replace(one, estimator="mca")], "only an estimate, by mca"),
    "failed": (
        lambda one: [replace(one, seconds=(), error="wrong: 1", checked=False)],
        "only failures",
    ),
    "space": (
        lambda one: [replace(one, config={"BLOCK_HO": 5})],
        "only configs that the kernel no longer takes",
    ),
    "nearest": (
        lambda one: [replace(one, device="znver3"), replace(one, threads=2)],
        "only with threads 2",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILS.values(), ids=SPOILS)
def test_each_reason_is_told(
    spoil: Callable[[Record], list[Record]], reason: str, tmp_path: Path
) -> None:
    records = WHOLE | {STEM.workload.key: None}
    kept = [one for one in records.values() if one is not None]
    assert lacking(tmp_path, kept + spoil(WHOLE[STEM.workload.key])) == {"stem": reason}


def test_each_layer_is_named(tmp_path: Path) -> None:
    shared = LAYERS["block7.depthwise"].workload
    names = [layer.name for layer in MODEL.layers if layer.workload == shared]
    assert len(names) > 1
    others = [one for key, one in WHOLE.items() if key not in (shared.key, HEAD.workload.key)]
    told = lacking(tmp_path, [*others, record(HEAD, threads=4)])
    assert told == dict.fromkeys(names, "none") | {"head": "only with threads 4"}


def test_estimates_count_where_they_are_allowed(tmp_path: Path) -> None:
    guesses = [replace(one, estimator="instructions") for one in WHOLE.values()]
    assert set(lacking(tmp_path, guesses)) == set(LAYERS)
    plan = checked(tmp_path, guesses, allow_estimates=True)
    assert {layer["why"] for layer in plan["layers"]} == {"estimated"}
    assert lacking(tmp_path, guesses[1:], allow_estimates=True) == {"stem": "none"}


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogError):
        pipeline.check(MODEL, HOST, pipeline.Log(path=tmp_path / "none"), threads=1)
