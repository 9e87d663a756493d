"""The staircase: imports only go down, meet in one place, and load nothing heavy by themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("targets", "kernels", "tune")  # from the ground up
HEAVY = ("ai_edge_litert", "numpy", "onnxruntime", "openvino", "torch", "triton", "tvm", "xgboost")
VERBS = {
    "tune.bench",
    "tune.builder",
    "tune.compile",
    "tune.graph",
    "tune.images",
    "tune.package",
    "tune.plan",
    "tune.regression",
    "tune.report",
    "tune.runtime",
    "tune.scheduler",
    "tune.search",
    "tune.transfer",
    "tune.verify",
}
# Verbs that import verbs: the result of a stage (`Choice`), facts of the builder, and the plan's
# fallback. None may be added; a line whose reason is gone has to go.
BESIDE = {
    ("tune.compile", "tune.builder"),
    ("tune.compile", "tune.plan"),
    ("tune.graph", "tune.builder"),
    ("tune.graph", "tune.plan"),
    ("tune.plan", "tune.transfer"),
}


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """Modules of ours that the file names in an import, wherever in it that stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in inside}
    return {name for name in names if name.split(".")[0] in FLOORS}


ARROWS = {(name, other) for name, path in MODULES.items() for other in imported(path)}


def floor(module: str) -> int:
    return FLOORS.index(module.split(".")[0])


def importers(module: str) -> set[str]:
    return {name for name, other in ARROWS if other == module}


def rooms(package: str) -> set[str]:
    """Modules inside a package of ours."""
    return {name for name in MODULES if name.startswith(f"{package}.")}


def test_walk_sees_every_kind_of_import(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import os, kernels.space\n"
        "from tune import cli\n"
        "from tune.plan import Choice\n"
        "def late():\n    from targets.x86 import host\n"
    )
    assert imported(planted) == {"kernels.space", "tune.cli", "tune.plan", "targets.x86"}
    assert len(ARROWS) > 50


def test_arrows_run_down() -> None:
    assert {arrow for arrow in ARROWS if floor(arrow[0]) < floor(arrow[1])} == set()


def test_arrows_lead_to_modules_that_are_there() -> None:
    assert {other for _, other in ARROWS} <= set(MODULES)


def test_arrows_run_in_no_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, other in ARROWS:
        if name != other:
            graph[name].add(other)
    assert set(MODULES) <= set(TopologicalSorter(graph).static_order())


def test_stages_meet_in_the_pipeline_and_nothing_imports_the_command_line() -> None:
    stages, commands = rooms("tune.pipeline"), rooms("tune.cli")
    assert importers("tune.cli") <= commands | {"tune.__main__"}
    assert importers("tune.pipeline") <= commands
    for room in stages:
        assert importers(room) <= stages | {"tune.pipeline"}
    for room in commands:
        assert importers(room) <= commands | {"tune.cli"}


def test_verbs_do_not_import_verbs() -> None:
    assert {arrow for arrow in ARROWS if set(arrow) <= VERBS} == BESIDE
    assert set(MODULES) >= VERBS


@pytest.mark.parametrize(
    "names", ["tune, kernels, targets", "tune.cli, kernels.space, targets.x86"]
)
def test_importing_the_rooms_loads_nothing_heavy(names: str) -> None:
    code = f"import sys, {names}\nprint(*sorted({{*{HEAVY!r}}} & {{*sys.modules}}))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert process.stdout.split() == []


def test_all_rooms_are_installed() -> None:
    """They are named one by one, so that nothing else is; an editable install hides who lacks."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == packages
    for name in packages:
        shipped = settings["package-data"].get(name, [])
        folder = ROOT / name.replace(".", "/")
        known = {path for pattern in ("*.py", *shipped) for path in folder.glob(pattern)}
        assert {path for path in folder.iterdir() if path.is_file()} <= known
