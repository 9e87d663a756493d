"""The emulator itself, found and asked for what it can do."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from tune.errors import SetupError

PROGRAM = "qemu-aarch64"
INSTALL = "on Debian as root: apt-get install qemu-user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """An emulator of aarch64 programs that can load plugins.

    version  (major, minor)
    """

    path: str
    version: tuple[int, int]


def find() -> Qemu:
    """The emulator on PATH. SetupError when there is none, or one that takes no plugins."""
    path = shutil.which(PROGRAM)
    if path is None:
        raise SetupError(
            f"no {PROGRAM} on PATH; expected QEMU, which runs aarch64 programs here; "
            f"install it, {INSTALL}"
        )
    printed = [
        subprocess.run([path, option], capture_output=True, text=True).stdout
        for option in ("--version", "-help")
    ]
    version = re.search(r"version (\d+)\.(\d+)", printed[0])
    if version is None or "-plugin" not in printed[1]:
        raise SetupError(
            f"{path} takes no -plugin; expected QEMU 4.2 or newer, dynamically linked; "
            f"install it, {INSTALL} (not qemu-user-static)"
        )
    return Qemu(path=path, version=(int(version[1]), int(version[2])))
