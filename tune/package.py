"""An artifact in, a folder out that runs on a machine without Python: runtime, header, program.

For a GPU the folder has TVM's CUDA runtime and NVIDIA's own; the driver is the machine's.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from targets import cuda_toolkit, machines
from targets.target import Target
from tune.emulator import wheels
from tune.emulator.cache import cache, once
from tune.errors import SetupError, UsageError
from tune.pins import PINS
from tune.printed import first_line

CPP = Path(__file__).resolve().parents[1] / "examples" / "cpp"
LABELS = Path(__file__).parent / "data" / "imagenet_labels.txt"
LIBRARIES = ("tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so")  # of TVM's two packages
GPU_LIBRARY = "tvm/lib/libtvm_runtime_cuda.so"  # beside them, where a GPU computes
# Kind of machine -> its name in `uname -m`, or its host's.
HARDWARE = {"x86": "x86_64", "arm64": "aarch64", "cuda": "x86_64"}
PYTHON = "3.11"  # of the wheels that libraries are taken from; Python itself is not
RUN_TIMEOUT_S = 120.0

README = """\
# {name}

MobileNet-V1 for {device}, compiled by septune with TVM {tvm}. Everything that it needs is in this
folder, except for the C and C++ libraries of a Linux system: glibc {glibc} or newer,
libstdc++{driver}.

```
./classify {name}.so photo.ppm
```

names what is on a photo (PPM, P6) and tells how long that takes; `--threads N`, `--repeat N`,
`--json`. Where /proc is not mounted, set `LD_LIBRARY_PATH` to the folder `lib`.

An application of your own, C++17, has in one of its sources

```
#define SEPTUNE_IMPLEMENTATION
#include "septune.hpp"

septune::Network network("{name}.so");
std::vector<float> logits = network.run(images, count);
```

and is built in this folder by

```
g++ -O2 -std=c++17 app.cc -o app -pthread -Iinclude -Llib -Wl,-rpath,'$ORIGIN/lib' \\
    -Wl,--no-as-needed -ltvm_runtime -ltvm_ffi -ldl
```

An image is {shape} of {dtype}: {range}. `include/septune.hpp` says what holds for threads and
errors. `{name}.json` describes the network and belongs beside it.
"""

DRIVER = """\
; and except for NVIDIA's driver, 580 or newer. `lib/libcudart.so.13` is NVIDIA's, whose
licence for CUDA lets it be passed on with an application"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """What was written, and what it took where that could be tried.

    parts     bytes of the weights, the rest of the network, TVM's runtime, and what comes with it
    glibc     the oldest version of the C library that will do
    measured  what its program told here; None when this machine cannot run it
    """

    folder: str
    device: str
    parts: dict[str, int]
    glibc: str
    measured: dict[str, Any] | None


class _Piece(NamedTuple):
    """A file to copy, and the part of the package that it counts to."""

    part: str
    source: Path
    place: str


def package(
    library: Path,
    manifest: dict[str, Any],
    target: Target,
    link: Sequence[str],
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Package:
    """Fill `folder`, which holds nothing yet, with the artifact `library` and all that it needs.

    manifest  of `library`, which was built for `target`
    link      the command of a compiler driver for the target
    progress  is told, in a line, what happens
    UsageError when the folder is in use, SetupError when runtime or compiler cannot be had.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} is in use; expected a new or empty folder; choose another -o")
    site = _site(target.kind, progress)
    runtime = _runtime(target.kind, site)
    with tempfile.TemporaryDirectory(prefix="septune-") as name:
        program = Path(name) / "classify"
        _compile(link, site, program)
        pieces = _pieces(library, manifest, runtime, program)
        for piece in pieces:
            place = folder / piece.place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(piece.source, place)
            place.chmod(0o755 if piece.source == program else 0o644)
    parts = {"weights": manifest["weights_bytes"], "network": -manifest["weights_bytes"]}
    for piece in pieces:
        size = (folder / piece.place).stat().st_size
        parts[piece.part] = parts.get(piece.part, 0) + size
    glibc = _glibc(folder / piece.place for piece in pieces)
    (folder / "README.md").write_text(_readme(library, manifest, glibc))
    parts["text"] = parts.get("text", 0) + (folder / "README.md").stat().st_size
    return Package(
        folder=str(folder),
        device=target.device,
        parts=parts,
        glibc=glibc,
        measured=_measured(folder, library.name, target),
    )


def _pieces(
    library: Path, manifest: dict[str, Any], runtime: Sequence[Path], program: Path
) -> list[_Piece]:
    pieces = [
        _Piece("network", library, library.name),
        _Piece("network", library.with_suffix(".json"), library.with_suffix(".json").name),
        *(_Piece("runtime", path, f"lib/{path.name}") for path in runtime),
        _Piece("program", program, program.name),
        _Piece("header", CPP / "septune.hpp", "include/septune.hpp"),
    ]
    if manifest["output"]["shape"][-1] == len(LABELS.read_text(encoding="utf-8").splitlines()):
        pieces.append(_Piece("text", LABELS, "labels.txt"))
    return pieces


def _site(kind: str, progress: Callable[[str], None]) -> Path:
    """A folder of TVM's packages for such a machine: those installed here, or fetched once."""
    if HARDWARE[kind] == platform.machine():
        return _installed("tvm")
    if kind != "arm64":
        raise SetupError(
            f"this machine is {platform.machine()} and has no runtime for {kind}; expected an "
            f"{HARDWARE[kind]} one; package it there"
        )
    wanted = [f"{name}=={version}" for name, version in PINS.items()]

    def make(folder: Path) -> None:
        progress("fetching TVM's runtime for aarch64")
        wheels.unpack(wanted, PYTHON, folder / "site", folder / "wheels")
        shutil.rmtree(folder / "wheels")

    return once(cache() / "runtime-arm64", json.dumps(wanted), make) / "site"


def _runtime(kind: str, site: Path) -> list[Path]:
    """The libraries that a network for such a machine runs with. SetupError without one."""
    found = [site / path for path in LIBRARIES]
    if kind == "cuda":
        try:
            found += [site / GPU_LIBRARY, cuda_toolkit.runtime_library()]
        except cuda_toolkit.ToolkitError as error:
            raise SetupError(str(error)) from None
    return found


def _installed(name: str) -> Path:
    """The folder that an installed package lies in; it is not imported."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise SetupError(
            f"{name} is not installed; expected the packages of TVM; "
            f"run: pip install {' '.join(f'{p}=={v}' for p, v in PINS.items())}"
        )
    return Path(found.origin).parents[1]


def _compile(link: Sequence[str], site: Path, program: Path) -> None:
    """Build the application that comes with a package. SetupError when that fails."""
    driver = ["c++" if word == "cc" else word for word in link]  # of zig, which has one name each
    command = [
        *(*driver, "-Os", "-std=c++17", "-s", "-pthread"),
        *(str(CPP / "classify.cc"), str(CPP / "photo.cc"), "-o", str(program)),
        *("-Wl,-rpath,$ORIGIN/lib", "-Wl,--no-as-needed"),
        *(str(site / path) for path in LIBRARIES),
        "-ldl",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = first_line(done.stderr, f"status {done.returncode}")
        raise SetupError(
            f"{driver[0]} cannot build the program: {reason}; expected a C++17 compiler "
            f"with its library; install one, on Debian as root: apt-get install g++"
        )


def _readme(library: Path, manifest: dict[str, Any], glibc: str) -> str:
    image = manifest["input"]
    return README.format(
        name=library.stem,
        device=manifest["target"]["device"],
        tvm=manifest["tvm"],
        glibc=glibc,
        driver=DRIVER if manifest["target"]["kind"] == "cuda" else "",
        shape=" x ".join(map(str, image["shape"][1:])),
        dtype=image["dtype"],
        range=image["range"],
    )


def _glibc(files: Any) -> str:
    """The newest version of glibc's symbols that any of `files` asks for."""
    found = {
        tuple(map(int, match))
        for file in files
        for match in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", file.read_bytes())
    }
    return ".".join(map(str, max(found)))


def _measured(folder: Path, name: str, target: Target) -> dict[str, Any] | None:
    """What the program tells of itself when it runs here, in an empty environment."""
    if platform.machine() != HARDWARE[target.kind] or not machines(target.kind).can_run(target):
        return None
    try:
        done = subprocess.run(
            [str(folder.resolve() / "classify"), name, "--json"],
            cwd=folder,
            env={},
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"{folder}/classify gives no answer after {RUN_TIMEOUT_S:g} s; expected one in less; "
            f"try again while nothing else runs"
        ) from None
    if done.returncode:
        raise SetupError(
            f"{folder}/classify fails: {done.stderr.strip()[-300:] or done.returncode}; expected "
            f"it to run; build the library again"
        )
    told: dict[str, Any] = json.loads(done.stdout)
    del told["photos"]
    return told
