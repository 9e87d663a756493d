"""What this machine has of the tools that some command needs."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from targets import TARGETS, machines
from tune.errors import SetupError
from tune.mca import tool
from tune.peers import OURS, PEERS
from tune.pins import check_pins


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked for.

    needed  whether anything at all works without it
    found   what is there; None when nothing usable is
    remedy  what to do where it is missing
    """

    what: str
    needed: bool
    found: str | None
    remedy: str = ""


def examine() -> tuple[Finding, ...]:
    """All findings, those that everything needs first."""
    return (
        _tvm(),
        _device(),
        *(_linker(kind) for kind in TARGETS),
        _emulator(),
        _tried("llvm-mca", False, tool),
        *(_peer(name) for name in PEERS if name != OURS),
    )


def _tvm() -> Finding:
    def found() -> str:
        check_pins()
        return version("apache-tvm")

    return _tried(f"TVM on Python {platform.python_version()}", True, found)


def _device() -> Finding:
    """The known device that this machine is."""
    kind = "arm64" if platform.machine() == "aarch64" else "x86"
    return _tried("this machine", True, lambda: str(machines(kind).host().device))


def _linker(kind: str) -> Finding:
    command = machines(kind).linker()
    return Finding(
        what=f"linker for {kind}",
        needed=kind == "x86",
        found=" ".join(command) if command else None,
        remedy=machines(kind).NO_LINKER,
    )


def _emulator() -> Finding:
    from tune.emulator import qemu

    def found() -> str:
        emulator = qemu.find()
        return f"{emulator.path} {'.'.join(map(str, emulator.version))}"

    return _tried("emulator of arm64", False, found)


def _peer(name: str) -> Finding:
    packages = PEERS[name].packages

    def found() -> str:
        return ", ".join(f"{package} {version(package)}" for package in packages)

    return _tried(f"peer {name}", False, found)


def _tried(what: str, needed: bool, look: Callable[[], str]) -> Finding:
    """The finding of `look`, which raises where there is nothing."""
    try:
        return Finding(what=what, needed=needed, found=look())
    except PackageNotFoundError as error:
        remedy = f"{error.name} is not installed; run: pip install -e '.[peers]'"
    except (SetupError, ValueError) as error:
        remedy = str(error)
    return Finding(what=what, needed=needed, found=None, remedy=remedy)
