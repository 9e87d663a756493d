"""A kernel's version: the same for the same code, another when the generated code is another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kernels import CPUS, KERNELS, KINDS
from kernels.te import pointwise
from kernels.te.cuda import product
from kernels.te.cuda.tile import finished
from kernels.te.llvm import depthwise
from kernels.te.llvm.code import Code
from kernels.version import version

ROOT = Path(__file__).parents[2]
HALF_ONLY = {"te.cuda.pointwise_wmma": "float16"}
SCHEDULED = [n for n in KERNELS if KINDS[n.rpartition(".")[0]] == CPUS and "llvm" not in n]
PARTS = {
    "schedule": ("vectorize_last", lambda *_, **__: None),
    "formula": ("activate", lambda value, activation: value * 2),
}
CODED = {
    "te.llvm.conv",
    "te.llvm.depthwise",
    "te.avx.pointwise",
    "te.avx.pointwise_strassen",
    "te.avx.separable",
    "te.avx.separable_strassen",
    "te.amx.pointwise",
    "te.amx.separable",
}
PAIRS = [(kind, name) for name in KERNELS for kind in KINDS[name.rpartition(".")[0]]]


def computed_anew(pairs: Sequence[tuple[str, str]] = PAIRS) -> dict[str, str]:
    """Versions by kind of machine and kernel, from no cache."""
    version.cache_clear()
    versions = {
        f"{kind} {name}": version(name, kind, HALF_ONLY.get(name, "float32"))
        for kind, name in pairs
    }
    version.cache_clear()
    return versions


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """Versions of the code as it stands."""
    return computed_anew()


def changed(before: dict[str, str], pairs: Sequence[tuple[str, str]] = PAIRS) -> set[str]:
    """Kernels whose version is another than before, on every kind of machine that has them."""
    after = computed_anew(pairs)
    moved = {(k, n) for k, n in pairs if before[f"{k} {n}"] != after[f"{k} {n}"]}
    names = {name for _, name in moved}
    assert moved == {(kind, name) for kind, name in pairs if name in names}
    return names


def module_of(name: str) -> Any:
    return import_module(KERNELS[name])


def test_every_kernel_has_a_version_of_its_own(before: dict[str, str]) -> None:
    """So each supports a probe: digests of nothing would be equal."""
    assert all(re.fullmatch("[0-9a-f]{12}", digits) for digits in before.values())
    assert len(set(before.values())) == len(PAIRS)


def test_float16_has_a_version_of_its_own() -> None:
    """Sums in parts, which no float32 kernel has, count as well."""
    for name in ("te.pointwise", "te.separable"):
        assert version(name, "arm64", "float16") != version(name, "arm64", "float32")


def test_same_in_a_process_that_asks_in_another_order(before: dict[str, str]) -> None:
    code = (
        "import json, sys\n"
        "from kernels.version import version\n"
        f"pairs = {PAIRS!r}\n"
        f"half_only = {HALF_ONLY!r}\n"
        "versions = {f'{k} {n}': version(n, k, half_only.get(n, 'float32'))"
        " for k, n in reversed(pairs)}\n"
        "print(json.dumps(versions))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert json.loads(printed) == before


@pytest.mark.parametrize(("part", "other"), PARTS.values(), ids=PARTS)
def test_another_part_is_another_version_of_that_kernel(
    part: str, other: Any, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among those alike, one by one."""
    alike = [(kind, name) for kind, name in PAIRS if name in SCHEDULED]
    for name in SCHEDULED:
        with monkeypatch.context() as patch:
            patch.setattr(module_of(name), part, other)
            assert changed(before, alike) == {name}


def test_no_other_kernel_changes_with_the_parts_of_these(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SCHEDULED:
        for part, other in PARTS.values():
            monkeypatch.setattr(module_of(name), part, other)
    assert changed(before) == set(SCHEDULED)


def test_other_code_is_another_version_of_all_that_share_it(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Code, "activate", lambda self, value, activation: value)
    cpus = [(kind, name) for kind, name in PAIRS if kind in CPUS]
    assert changed(before, cpus) == CODED


def test_code_for_wide_vectors_alone_is_another_version(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are registers for all taps, which the common probe device lacks."""
    monkeypatch.setattr(depthwise, "_holds_taps", lambda workload, target: False)
    [after] = computed_anew([("x86", "te.llvm.depthwise")]).values()
    assert after != before["x86 te.llvm.depthwise"]


@pytest.mark.parametrize("name", [name for _, name in PAIRS if name.startswith("te.cuda.")])
def test_another_output_is_another_version(
    name: str, before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Those that end in a matrix product share the formula of its end.
    module = module_of(name) if hasattr(module_of(name), "finished") else product
    monkeypatch.setattr(module, "finished", lambda total, *rest: finished(total * 2, *rest))
    [after] = computed_anew([("cuda", name)]).values()
    assert after != before[f"cuda {name}"]


def test_choosing_other_defaults_is_no_other_version(
    before: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is generated for a config counts, not which config is the default."""
    knob = pointwise.Knob
    monkeypatch.setattr(
        pointwise, "Knob", lambda name, choices, default: knob(name, choices, choices[0])
    )
    mine = [(kind, name) for kind, name in PAIRS if name in ("te.pointwise", "te.separable")]
    assert changed(before, mine) == set()
