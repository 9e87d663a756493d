"""Where code runs: facts about machines, as data. Imports nothing of ours."""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

# Kind of machine -> the module that knows its devices; loaded on first use.
TARGETS = {"x86": "targets.x86", "arm64": "targets.arm64", "cuda": "targets.cuda"}


def here() -> str:
    """The kind of machine that this one's CPU is."""
    return "arm64" if platform.machine() == "aarch64" else "x86"


def machines(kind: str) -> Any:
    """The module of a kind of machine.

    `DEVICES`, `host(cpuinfo)`, `can_run(target, cpuinfo)`, `instructions(target)`,
    `is_core(target, cpuinfo)`, `cores()`, `linker()` and `NO_LINKER`, what to say without one.
    `cpuinfo` is a file such as /proc/cpuinfo, this machine's by default.

    ValueError for an unknown kind.
    """
    if kind not in TARGETS:
        raise ValueError(
            f"target {kind!r} is not known; expected one of {', '.join(TARGETS)}; "
            f"a new kind is a new file in targets/"
        )
    return import_module(TARGETS[kind])
