"""An aarch64 Debian with Python and TVM's runtime, unpacked from packages: needs no root.

Packages come from wherever this machine's own apt and pip take theirs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tune.emulator import qemu, wheels
from tune.emulator.cache import cache, once
from tune.errors import SetupError
from tune.pins import PINS
from tune.printed import last_line

DEBIAN = ("python3", "libstdc++6", "zlib1g")
PYTHON = (
    *(f"{package}=={version}" for package, version in PINS.items()),
    "cloudpickle>=3,<4",
    "ml_dtypes",
    "numpy>=2.3,<3",
    "psutil>=7,<8",
    "tornado>=6,<7",
    "typing_extensions",
)
# The core that the system shows: a Raspberry Pi 5's. Older versions of QEMU show the host's file,
# but every version looks below the root first.
CORE = "cortex-a76"
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The unpacked system.

    root  what the programs in it see as /
    site  Python packages
    """

    emulator: qemu.Qemu
    root: Path
    site: Path

    def command(
        self,
        *program: str | Path,
        core: str = "max",
        plugin: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The command line that runs an aarch64 program.

        core      QEMU's name for the CPU, e.g. cortex-a76; `max` runs code for any
        plugin    a plugin's library and its options, as QEMU spells them
        settings  environment variables for the program alone
        """
        found = {"LD_LIBRARY_PATH": f"{self.tvm_ffi.parent}:{self.tvm_runtime.parent}"}
        return [
            self.emulator.path,
            *("-L", str(self.root)),
            *("-cpu", core),
            *(("-plugin", plugin) if plugin else ()),
            *(part for item in (found | dict(settings or {})).items() for part in _setting(*item)),
            *map(str, program),
        ]

    def python(
        self, *arguments: str | Path, path: Sequence[Path] = (), plugin: str | None = None
    ) -> list[str]:
        """The command line of its Python interpreter; `path` is searched for modules, too."""
        search = {"PYTHONPATH": ":".join(map(str, (*path, self.site)))}
        return self.command(
            interpreter(self.root), *arguments, core=CORE, plugin=plugin, settings=search
        )

    @property
    def tvm_ffi(self) -> Path:
        return self.site / "tvm_ffi" / "lib" / "libtvm_ffi.so"

    @property
    def tvm_runtime(self) -> Path:
        return self.site / "tvm" / "lib" / "libtvm_runtime.so"


def guest(progress: Callable[[str], None] = lambda _: None) -> Guest:
    """The system, unpacked when it is not there yet: a few seconds and 160 MB.

    progress  is told, in a line, what happens
    SetupError when a tool is missing or packages cannot be had.
    """
    emulator = qemu.find()

    def make(folder: Path) -> None:
        progress("unpacking Debian packages for arm64")
        unpack_debian(DEBIAN, folder / "root", folder / "apt")
        shutil.rmtree(folder / "apt")
        (folder / "root" / "proc").mkdir()
        (folder / "root" / "proc" / "cpuinfo").write_text(CPUINFO)
        progress("unpacking Python packages for aarch64")
        unpack_wheels(PYTHON, folder / "root", folder / "site", folder / "wheels")
        shutil.rmtree(folder / "wheels")
        progress("importing TVM in the emulated Python")
        made = Guest(emulator=emulator, root=folder / "root", site=folder / "site")
        _run(
            made.python("-c", "import numpy, tvm.rpc.server"),
            "the emulated Python cannot import TVM",
            "remove the folder and try again",
        )

    folder = once(cache() / "guest", json.dumps([DEBIAN, PYTHON, CPUINFO]), make)
    return Guest(emulator=emulator, root=folder / "root", site=folder / "site")


def unpack_debian(packages: Sequence[str], root: Path, scratch: Path) -> None:
    """Unpack `packages` for arm64, and what they depend on, below `root`.

    apt works on a state of its own in `scratch`, empty but for this machine's list of sources.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SetupError(
                f"no {tool} on PATH; expected Debian's package tools, which fetch and unpack the "
                f"emulated system; use a Debian or Ubuntu machine, or a container of one"
            )
    archives = scratch / "cache" / "archives"
    for folder in (scratch / "lists" / "partial", archives / "partial"):
        folder.mkdir(parents=True)
    status = scratch / "status"
    status.touch()
    options: dict[str, str | Path] = {
        "Dir::State": scratch,
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::Status": status,
        "Dir::Cache": scratch / "cache",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(part for item in options.items() for part in _option(*item))]
    # A source without arm64 fails to update; whether that matters shows when packages are fetched.
    subprocess.run([*apt, "update"], capture_output=True)
    _run(
        [*apt, "install", "--yes", "--download-only", *packages],
        f"apt cannot fetch {', '.join(packages)} for arm64",
        "name a source that has arm64 in /etc/apt/sources.list",
    )
    root.mkdir()
    for archive in sorted(archives.glob("*.deb")):
        _run(
            ["dpkg-deb", "--extract", str(archive), str(root)],
            f"{archive.name} cannot be unpacked",
            "free some disk space and try again",
        )


def unpack_wheels(requirements: Sequence[str], root: Path, site: Path, scratch: Path) -> None:
    """Unpack aarch64 wheels of exactly `requirements` into `site`, for the Python below `root`."""
    wheels.unpack(requirements, interpreter(root).name.removeprefix("python"), site, scratch)


def interpreter(root: Path) -> Path:
    """The one Python below `root`, under its full name, e.g. python3.11."""
    return next((root / "usr" / "bin").glob("python3.*[0-9]"))


def _run(command: Sequence[str], failed: str, remedy: str) -> None:
    """Run `command`; SetupError when it cannot be, or fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        reason = last_line(done.stderr, f"status {done.returncode}")
        raise SetupError(f"{failed}: {reason}; expected it to work unattended; {remedy}")


def _option(name: str, value: str | Path) -> tuple[str, str]:
    return "-o", f"{name}={value}"


def _setting(name: str, value: str) -> tuple[str, str]:
    return "-E", f"{name}={value}"
