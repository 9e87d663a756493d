"""The library that keeps a board's server alive and traces calls, built for its kind of machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from targets.target import Target
from tune.builder import linker
from tune.errors import SetupError

SOURCE = Path(__file__).with_name("guard.c")


def build_guard(target: Target, path: Path) -> None:
    """Write the library to `path`. SetupError when no compiler can make it."""
    from tvm_ffi import libinfo

    headers = (libinfo.find_include_path(), libinfo.find_dlpack_include_path())
    includes = [f"-I{folder}" for folder in dict.fromkeys(headers)]
    command = [*linker(target), "-shared", "-fPIC", "-O2", "-s", *includes]
    done = subprocess.run(
        [*command, "-x", "c", str(SOURCE), "-o", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        raise SetupError(
            f"{command[0]} cannot compile {SOURCE.name}: {(done.stderr.strip() or '?')[-300:]}; "
            f"expected a C compiler for {target.kind}; check it or install another"
        )
