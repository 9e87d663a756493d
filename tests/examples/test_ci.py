"""The CI examples, run as they stand; only the tools that install packages are stand-ins.

And `python`, where a library would be built that was built before: that two builds give the same is
tested elsewhere, here that the script sees when they do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tune import database
from tune.emulator import qemu

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CI = ROOT / "examples" / "ci"
WORKFLOW = (CI / "github-workflow.yml").read_text()
# Copies what was built under the same words, whatever their order. SPOIL is added to the second
# library of a name.
REMEMBERING = """#!{python}
import os, shutil, subprocess, sys
from pathlib import Path

*words, output = sys.argv[1:]
command = [sys.executable, *sys.argv[1:]]
if words[:3] != ["-m", "tune", "build"]:
    os.execv(command[0], command)
kept = Path({kept!r}) / "".join(sorted(words)).replace("/", ".")
library = Path(output)
if not kept.exists():
    if status := subprocess.run(command).returncode:
        sys.exit(status)
    kept.mkdir()
    for suffix in (".so", ".json"):
        shutil.copy(library.with_suffix(suffix), kept / f"kept{{suffix}}")
library.parent.mkdir(parents=True, exist_ok=True)
for suffix in (".so", ".json"):
    shutil.copy(kept / f"kept{{suffix}}", library.with_suffix(suffix))
if library.parent.name == "again":
    with library.open("a") as file:
        file.write(os.environ.get("SPOIL", ""))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own, whose logs a test may spoil."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("examples", "kernels", "pyproject.toml", "targets", "tune"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "logs", folder / "logs")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """`python`, and stand-ins that write down what they are asked to install."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python", "python3"):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for name in ("pip", "sudo"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >>{tmp_path}/installed\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def remembering(environment: dict[str, str], tmp_path: Path, kept: Path) -> dict[str, str]:
    """The same, `python` copying what was built before."""
    for name in ("python", "python3"):
        text = REMEMBERING.format(python=sys.executable, kept=str(kept))
        (tmp_path / "tools" / name).write_text(text)
    return environment


def jobs() -> dict[str, list[str]]:
    """The `run` steps of each job of the workflow, in their order."""
    found: dict[str, list[str]] = {}
    _, _, body = WORKFLOW.partition("\njobs:\n")
    for name, steps in re.findall(r"^  (\w+):\n((?:(?:    .*)?\n)+)", body, re.M):
        found[name] = [
            textwrap.dedent(block) if block else line
            for line, block in re.findall(
                r"^        run: (?:\|\n((?:          .*\n)+)|(.*)\n)", steps, re.M
            )
        ]
    return found


def run(
    script: str, checkout: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """As GitHub runs a step."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_what_is_installed_exists(
    checkout: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    for steps in jobs().values():
        assert run(steps[0], checkout, environment).returncode == 0
    asked = (tmp_path / "installed").read_text().splitlines()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert "pip install -e .[arm64]" in asked
    assert "arm64" in extras
    assert "sudo apt-get install -y qemu-user g++-aarch64-linux-gnu" in asked


def test_workflow_builds_and_packages(checkout: Path, remembering: dict[str, str]) -> None:
    steps = jobs()["rebuild"]
    assert len(steps) == WORKFLOW.partition("  verify:\n")[0].count("run: ") == 4
    for step in steps:
        done = run(step, checkout, remembering)
        assert done.returncode == 0, done.stderr
    for kind in ("x86", "arm64"):
        package = checkout / "build" / "packages" / kind
        manifest = json.loads((package / "mobilenet.json").read_text())
        assert manifest["target"]["kind"] == kind
        library = (package / "mobilenet.so").read_bytes()
        assert hashlib.sha256(library).hexdigest() == manifest["library_sha256"]
        assert (package / "classify").is_file()


def test_workflow_verifies_what_was_counted(checkout: Path, environment: dict[str, str]) -> None:
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"counting instructions needs {qemu.PROGRAM}")
    *_, verify = jobs()["verify"]
    log = checkout / "logs" / "arm64" / "cortex-a76.jsonl"
    records = database.read(log).records
    key = "depthwise/f32/n1.h112.w112.c32.k3.s1.p1-1-1-1/relu6"
    log.unlink()
    for record in records:  # as if each had taken a twentieth less when it was recorded
        line = json.loads(database.identity(record))
        if record.workload == key:
            line["seconds"] = [second * 0.95 for second in line["seconds"]]
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
    done = run(verify, checkout, environment)
    assert key in done.stdout
    # The others take what was recorded.
    [failure] = [line for line in done.stderr.splitlines() if line.startswith("septune: ")]
    assert failure.startswith("septune: block1.depthwise: 1.05 times as long; expected")
    assert done.returncode == 1


def test_script_builds_twice_the_same(checkout: Path, remembering: dict[str, str]) -> None:
    done = run("sh examples/ci/rebuild.sh out", checkout, remembering)
    assert done.returncode == 0, done.stderr
    sums = (checkout / "out" / "SHA256SUMS").read_text()
    assert sums.count("\n") == 4
    assert done.stdout.endswith(sums)
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=checkout / "out")
    assert check.returncode == 0
    done = run("sh examples/ci/rebuild.sh out", checkout, remembering | {"SPOIL": "more"})
    assert done.returncode == 1
    assert "out/x86.so" in done.stderr


def test_both_fail_when_a_log_no_longer_fits(checkout: Path, environment: dict[str, str]) -> None:
    log = checkout / "logs" / "x86" / "znver4.jsonl"
    kept = [line for line in log.read_text().splitlines() if '"workload": "conv/' not in line]
    log.write_text("\n".join(kept) + "\n")
    for script in (jobs()["rebuild"][1], "sh examples/ci/rebuild.sh out"):
        done = run(script, checkout, environment)
        assert done.returncode == 1
        assert "septune: no record in logs/x86/znver4.jsonl for stem (none); " in done.stderr
