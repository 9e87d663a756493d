"""What this machine has of the tools that some command needs."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from targets import TARGETS, cuda_toolkit, here, machines
from tune import cubin, mca
from tune.errors import SetupError
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
        _tried("llvm-mca", False, mca.tool),
        _tried("CUDA toolkit", False, _cuda),
        _tried("Triton", False, lambda: version("triton"), extra="cuda"),
        _tried("cuobjdump", False, cubin.tool),
        _tried("GPU and its driver", False, lambda: str(machines("cuda").host().device)),
        *(_peer(name) for name in PEERS if name != OURS),
    )


def _tvm() -> Finding:
    def found() -> str:
        check_pins()
        return version("apache-tvm")

    return _tried(f"TVM on Python {platform.python_version()}", True, found)


def _device() -> Finding:
    """The known device that this machine is."""
    return _tried("this machine", True, lambda: str(machines(here()).host().device))


def _linker(kind: str) -> Finding:
    command = machines(kind).linker()
    return Finding(
        what=f"linker for {kind}",
        needed=kind == here(),
        found=" ".join(command) if command else None,
        remedy=machines(kind).NO_LINKER,
    )


def _emulator() -> Finding:
    from tune.emulator import qemu

    def found() -> str:
        emulator = qemu.find()
        return f"{emulator.path} {'.'.join(map(str, emulator.version))}"

    return _tried("emulator of arm64", False, found)


def _cuda() -> str:
    """What compiles for a GPU, with or without one."""
    toolkit = cuda_toolkit.load()
    return f"{toolkit.nvcc} {toolkit.version}, {toolkit.runtime}"


def _peer(name: str) -> Finding:
    packages = PEERS[name].packages

    def found() -> str:
        return ", ".join(f"{package} {version(package)}" for package in packages)

    return _tried(f"peer {name}", False, found)


def _tried(what: str, needed: bool, look: Callable[[], str], extra: str = "peers") -> Finding:
    """The finding of `look`, which raises where there is nothing.

    extra  of ours, with which packages that it looks for are installed
    """
    try:
        return Finding(what=what, needed=needed, found=look())
    except PackageNotFoundError as error:
        remedy = f"{error.name} is not installed; run: pip install -e '.[{extra}]'"
    except (SetupError, cuda_toolkit.ToolkitError, ImportError, ValueError) as error:
        remedy = str(error)
    return Finding(what=what, needed=needed, found=None, remedy=remedy)
