"""A workload and a config in, a shared library out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernels import kernel
from kernels.space import Config
from kernels.workload import Workload
from targets import machines
from targets.target import Target
from tune.errors import SetupError
from tune.printed import first_line

# Whoever calls a kernel gives it what it asks for; to check that would be a third of its code.
UNCHECKED = {"tirx.disable_assert": True}


def build(
    workload: Workload, name: str, config: Config, target: Target, path: Path
) -> tuple[tuple[int, ...], ...]:
    """Write the library of one candidate, its function `main`, to `path`; its arguments' shapes.

    Whatever TVM raises passes through: to the caller, a candidate that cannot be built is a result.
    """
    import tvm

    scheduled = kernel(name).lower(workload, config, target)
    with compiling(target, UNCHECKED):
        executable = tvm.compile(scheduled, target=target.tvm())
    for code in (scheduled.attrs or {}).get("external_mods", []):  # compiled already
        executable.mod.import_module(code)
    export(executable, target, path)
    return argument_shapes(scheduled["main"])


@contextmanager
def compiling(target: Target, passes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Where TVM makes code for `target`. `passes` are settings of its own passes."""
    if target.kind == "cuda":
        from targets import cuda_toolkit

        with cuda_toolkit.compiling(target, passes):
            yield
    else:
        from tvm.ir.transform import PassContext

        with target.tvm(), PassContext(config=dict(passes or {})):
            yield


def export(executable: Any, target: Target, path: Path) -> None:
    """Link what TVM compiled into the shared library `path`. SetupError when that fails."""
    command = linker(target)

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None) -> None:
        # No symbols but those that are found by name: nobody debugs there, and it is sent about.
        shared = [*command, "-shared", "-fPIC", "-Wl,-s", "-o", output, *(options or ()), *objects]
        done = subprocess.run(shared, capture_output=True, text=True)
        if done.returncode:
            reason = first_line(done.stderr, f"status {done.returncode}")
            raise SetupError(
                f"{command[0]} cannot link {path}: {reason}; expected a linker that works "
                f"and a path that can be written; see that there is room, or choose another -o"
            )

    executable.export_library(str(path), fcompile=link)


def argument_shapes(function: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of a PrimFunc's arguments, in their order."""
    return tuple(tuple(int(size) for size in buffer.shape) for buffer in function.params)


def prepare(target: Target) -> None:
    """See that what compiles and links for `target` is there. SetupError when something is not."""
    linker(target)
    if target.kind == "cuda":
        from targets import cuda_toolkit

        try:
            cuda_toolkit.load()
        except cuda_toolkit.ToolkitError as error:
            raise SetupError(str(error)) from None


def linker(target: Target) -> tuple[str, ...]:
    """The command of a compiler driver that links for `target`. SetupError when there is none."""
    machine = machines(target.kind)
    found: tuple[str, ...] | None = machine.linker()
    if found is None:
        raise SetupError(machine.NO_LINKER)
    return found
