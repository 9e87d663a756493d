"""A kernel's version: the same for the same code, another when the generated code is another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels import KERNELS
from kernels.te import conv, depthwise, head, pointwise, separable
from kernels.version import version
from targets import TARGETS

ROOT = Path(__file__).parents[2]
MODULES: dict[str, Any] = {
    "te.conv": conv,
    "te.depthwise": depthwise,
    "te.pointwise": pointwise,
    "te.head": head,
    "te.separable": separable,
}


def computed_anew() -> dict[str, str]:
    """Versions by kind of machine and kernel, from no cache."""
    version.cache_clear()
    versions = {
        f"{kind} {name}": version(name, kind, "float32") for kind in TARGETS for name in KERNELS
    }
    version.cache_clear()
    return versions


def changed(before: dict[str, str]) -> set[str]:
    """Kernels whose version is another than before, on every kind of machine."""
    after = computed_anew()
    others = [{n for n in KERNELS if before[f"{k} {n}"] != after[f"{k} {n}"]} for k in TARGETS]
    assert all(names == others[0] for names in others)
    return others[0]


def test_every_kernel_has_a_version_of_its_own() -> None:
    """So each supports a probe: digests of nothing would be equal."""
    versions = computed_anew()
    assert all(re.fullmatch("[0-9a-f]{12}", digits) for digits in versions.values())
    assert len(set(versions.values())) == len(KERNELS) * len(TARGETS)
    assert set(MODULES) == set(KERNELS)


def test_same_again() -> None:
    assert computed_anew() == computed_anew()


def test_same_in_a_process_that_asks_in_another_order() -> None:
    code = (
        "import json, sys\n"
        "from kernels import KERNELS\n"
        "from kernels.version import version\n"
        "from targets import TARGETS\n"
        "pairs = [(kind, name) for kind in TARGETS for name in KERNELS]\n"
        "versions = {f'{k} {n}': version(n, k, 'float32') for k, n in reversed(pairs)}\n"
        "print(json.dumps(versions))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert json.loads(printed) == computed_anew()


@pytest.mark.parametrize("name", KERNELS)
def test_another_schedule_is_another_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = computed_anew()
    monkeypatch.setattr(MODULES[name], "vectorize_last", lambda *_, **__: None)
    assert changed(before) == {name}


@pytest.mark.parametrize("name", KERNELS)
def test_another_formula_is_another_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = computed_anew()
    monkeypatch.setattr(MODULES[name], "activate", lambda value, activation: value * 2)
    assert changed(before) == {name}


def test_choosing_other_defaults_is_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is generated for a config counts, not which config is the default."""
    before = computed_anew()
    knob = pointwise.Knob
    monkeypatch.setattr(
        pointwise, "Knob", lambda name, choices, default: knob(name, choices, choices[0])
    )
    assert changed(before) == set()
