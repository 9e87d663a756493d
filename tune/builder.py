"""A workload and a config in, a shared library out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernels import kernel
from kernels.space import Config
from kernels.workload import Workload
from targets import machines
from targets.target import Target
from tune.errors import SetupError


def build(
    workload: Workload, name: str, config: Config, target: Target, path: Path
) -> tuple[tuple[int, ...], ...]:
    """Write the library of one candidate, its function `main`, to `path`; its arguments' shapes.

    Whatever TVM raises passes through: to the caller, a candidate that cannot be built is a result.
    """
    import tvm

    scheduled = kernel(name).lower(workload, config, target)
    executable = tvm.compile(scheduled, target=target.tvm())
    executable.export_library(str(path), cc=linker(target))
    return argument_shapes(scheduled["main"])


def argument_shapes(function: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of a PrimFunc's arguments, in their order."""
    return tuple(tuple(int(size) for size in buffer.shape) for buffer in function.params)


def linker(target: Target) -> str:
    """The compiler driver that links for `target`. SetupError when there is none."""
    found: str | None = machines(target.kind).linker()
    if found is None:
        raise SetupError(
            "no C++ compiler on PATH; expected g++, c++ or clang++, which link what TVM compiles; "
            "install one, on Debian as root: apt-get install g++"
        )
    return found
