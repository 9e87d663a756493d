"""The script that launches a network in several ways: what each makes of one kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernels.version import version

ROOT = Path(__file__).parents[2]
# In a process of its own each: one of the ways changes what kernels are made of.
COMPILE = """
import json, sys
import launching
import tune.pipeline
from kernels import kernel
from kernels.triton import embed
from kernels.version import version
from kernels.workload import Pointwise
from targets import machines

target = machines("cuda").DEVICES["h100"]
workload = Pointwise(N=1, H=14, W=14, Ci=64, Co=64, dtype="float16")
module = kernel("triton.pointwise")
call = module.call(workload, module.space(workload, target).default, target)
versions = []

def build(*arguments, **options):
    versions.append(version("triton.pointwise", "cuda", "float16"))
    return {"layers": []}

tune.pipeline.build = build
launching.built(sys.argv[1], None, target, None, None, None)
[binary] = embed.compile_call(call, target)
facts = {name: getattr(binary, name) for name in ("dependent", "shared_bytes", "ir")}
print(json.dumps(facts | {"sm_bytes": target.gpu.shared_per_sm_bytes, "versions": versions}))
"""


@pytest.fixture(scope="module")
def ways() -> dict[str, dict[str, Any]]:
    """A kernel as each way launches it."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "examples/gpu")])
    found = {}
    for way in ("ahead", "held", "alone", "behind"):
        command = [sys.executable, "-c", COMPILE, way]
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[way] = json.loads(done.stdout)
    return found


def test_each_way_launches_the_kernels_that_have_records(ways: dict[str, Any]) -> None:
    found = {version for binary in ways.values() for version in binary["versions"]}
    assert found == {version("triton.pointwise", "cuda", "float16")}


def test_only_what_is_behind_is_launched_in_the_ordinary_way(ways: dict[str, Any]) -> None:
    assert [way for way, binary in ways.items() if not binary["dependent"]] == ["behind"]


def test_only_who_is_held_does_not_let_the_next_one_start(ways: dict[str, Any]) -> None:
    assert all("griddepcontrol.wait" in binary["ir"] for binary in ways.values())
    kept = [way for way, binary in ways.items() if "launch_dependents" not in binary["ir"]]
    assert kept == ["held"]


def test_two_blocks_that_are_alone_do_not_fit_an_sm(ways: dict[str, Any]) -> None:
    fits = {way for way, each in ways.items() if 2 * each["shared_bytes"] <= each["sm_bytes"]}
    assert fits == {"ahead", "held", "behind"}
