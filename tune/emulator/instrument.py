"""Executed instructions of what TVM has compiled for aarch64, and what it computed meanwhile.

Two small C programs, built when first needed: `counter.c`, a plugin in QEMU, counts; `driver.c`, an
aarch64 program in it, calls. That starts in a third of a second, where Python takes six.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kernels.reference import Array
from kernels.workload import DTYPES
from tune.emulator import MARK
from tune.emulator.cache import cache, once
from tune.emulator.guest import Guest
from tune.errors import SetupError
from tune.printed import first_line, last_line

CALLS = 2  # the first binds symbols, fills caches and starts the thread pool
SOURCES = Path(__file__).parent
SINGLE = {"TVM_NUM_THREADS": "1"}


class GuestFailed(Exception):
    """The emulated program ended in another way than it should; the message says how."""


class GuestTimeout(Exception):
    """The emulated program did not end in time; it was killed."""


class Block(NamedTuple):
    """A stretch of code without a jump into it, and how often it was executed.

    code  its instructions as encoded, 32 bits each
    """

    executions: int
    code: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Instructions of one call after the first, on one thread, and its output."""

    instructions: int
    y: Array
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """A guest with the plugin that counts and the program that calls."""

    guest: Guest
    counter: Path
    driver: Path

    def kernel(self, library: Path, arguments: Sequence[Array], timeout_s: float = 60.0) -> Count:
        """Of `main(*arguments)`; the last argument is the output. GuestFailed, GuestTimeout."""
        names = [f"{i}.{DTYPES[str(array.dtype)]}" for i, array in enumerate(arguments)]
        files = dict(zip(names, arguments, strict=True))
        return self._count("kernel", library, files, (), names[-1], timeout_s)

    def network(self, library: Path, image: Array, timeout_s: float = 300.0) -> Count:
        """Of one inference of a whole network; y (values,). GuestFailed, GuestTimeout."""
        dtype = DTYPES[str(image.dtype)]
        x, y = f"x.{dtype}", f"y.{dtype}"
        return self._count("network", library, {x: image}, (y,), y, timeout_s)

    def plugin(self, out: Path, blocks: Path | None = None) -> str:
        """For `Guest.command`: count, and write as counter.c says."""
        return f"{self.counter},out={out}" + (f",blocks={blocks}" if blocks else "")

    def _count(
        self,
        what: str,
        library: Path,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        y: str,
        timeout_s: float,
    ) -> Count:
        """What the driver does with `inputs` and `outputs`, files in a folder of its own.

        It is called by the same words in the same environment every time: their length moves the
        stack, and where data lies decides how memcpy copies it.
        """
        with tempfile.TemporaryDirectory(prefix="septune-") as name:
            folder = Path(name)
            (folder / "library.so").symlink_to(library.resolve())
            for file, array in inputs.items():
                array.tofile(folder / file)
            tensors = [f"{file}:{_spelt(array.shape)}" for file, array in inputs.items()]
            command = self.guest.command(
                *(str(self.driver), what, "./library.so", str(CALLS), *tensors, *outputs),
                plugin=self.plugin(folder / "marks", folder / "blocks"),
                settings=SINGLE,
            )
            _run(command, folder, timeout_s)
            return Count(
                instructions=between_marks(folder / "marks")[-1],
                y=np.fromfile(folder / y, next(iter(inputs.values())).dtype),
                blocks=_blocks(folder / "blocks"),
            )


def between_marks(out: Path) -> tuple[int, ...]:
    """Instructions from each mark to the next, from what the plugin wrote."""
    return tuple(map(int, out.read_text().split()[1:]))


def _blocks(listing: Path) -> tuple[Block, ...]:
    lines = [line.split() for line in listing.read_text().splitlines()]
    return tuple(
        Block(int(executions), tuple(int(word, 16) for word in code)) for executions, *code in lines
    )


def _run(command: Sequence[str], folder: Path, timeout_s: float) -> None:
    """Run `command` in `folder`, its environment empty. GuestFailed, GuestTimeout."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise GuestTimeout(f"no end after {timeout_s:g} s") from None
    if done.returncode:
        raise GuestFailed(_end(done.returncode, done.stderr.decode(errors="replace")))


def instrument(guest: Guest, linker: Sequence[str]) -> Instrument:
    """The instrument, its two programs built when that was not done before.

    linker  the command of a compiler driver for aarch64 Linux
    SetupError when a program cannot be built.
    """
    from tvm_ffi import libinfo

    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise SetupError(
            "no C compiler on PATH; expected cc, gcc or clang, which builds a plugin for QEMU; "
            "install one, on Debian as root: apt-get install gcc"
        )
    sources = [SOURCES / "counter.c", SOURCES / "driver.c"]
    code = _digest(b"".join(source.read_bytes() for source in sources))

    def make(folder: Path) -> None:
        api, mark = f"-DQEMU_PLUGIN_VERSION={_api(guest)}", f"-DMARK={MARK}"
        libraries = ("-x", "none", "-Wl,--no-as-needed", guest.tvm_ffi, guest.tvm_runtime)
        plugin, program = folder / "counter.so", folder / "driver"
        _compile(compiler, "-O2", "-shared", "-fPIC", api, mark, sources[0], "-o", plugin)
        headers = f"-I{libinfo.find_include_path()}"
        _compile(*linker, "-O2", "-x", "c", headers, mark, sources[1], *libraries, "-o", program)

    stamp = f"{code} {MARK} {compiler} {' '.join(linker)} {guest.emulator.version} {guest.site}"
    # A folder for each, so that another checkout at work does not have its own replaced.
    folder = once(cache() / f"instrument-{_digest(stamp.encode())}", stamp, make)
    return Instrument(guest=guest, counter=folder / "counter.so", driver=folder / "driver")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _api(guest: Guest) -> int:
    """The version of the plugin interface: QEMU 9 refuses the first. What is used is in both."""
    return 1 if guest.emulator.version < (9, 0) else 2


def _compile(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        reason = first_line(done.stderr, f"status {done.returncode}")
        raise SetupError(
            f"{command[0]} cannot build {command[-1]}: {reason}; expected a compiler and "
            f"the C library's headers; install them, on Debian as root: apt-get install gcc "
            f"libc6-dev g++-aarch64-linux-gnu"
        )


def _spelt(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _end(status: int, printed: str) -> str:
    """How the emulated program ended: its signal or status, and the last line it printed."""
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    line = last_line(printed, "")
    return f"{how}: {line}" if line else how
