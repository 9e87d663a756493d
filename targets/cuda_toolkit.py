"""What TVM needs to compile for CUDA: nvcc, the CUDA runtime, and a driver or what stands for it.

TVM's CUDA runtime is linked against libcudart.so.13 and libcuda.so.1. Where one of them is missing
TVM says nothing: it compiles a kernel to a module that holds source only and fails when that is
used, on a GPU. `load` finds all three, or raises.

A library that is loaded serves every later one that asks for its name, so that both are found
wherever they lie, without LD_LIBRARY_PATH, whether TVM was imported before or not.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from targets.target import Target

DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"
STAND_IN = Path(__file__).with_name("no_driver.c")
INSTALL = "run: pip install -e '.[cuda]'"
SETTINGS = {
    "TVM_CUDA_COMPILE_MODE": "nvcc",  # nvrtc, TVM's default, asks for one package more
    # Exact arithmetic costs nothing where nothing divides or calls a function of libm.
    "TVM_CUDA_NVCC_NO_FAST_MATH": "1",
    # The assembler's own level. At TVM's, 10, a fused kernel of 14x14x512 takes 168 registers and
    # spills, at 5 it takes 140 and does not (ptxas 13.0.88, sm_90, 2026-11-25).
    "TVM_CUDA_PTXAS_REG_LEVEL": "5",
}
# Else TVM lets a tile of sums take the place of a tile of float16 and then refuses the result.
PASSES = {"tirx.disable_storage_rewrite": True}


class ToolkitError(RuntimeError):
    """A part of the CUDA toolkit is missing or does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolkit:
    """What was found and loaded.

    nvcc        the compiler; its folder is on PATH
    version     of nvcc, e.g. "13.0.88"
    runtime     the CUDA runtime library, as the loader knows it
    has_driver  whether the machine has a driver; without one it compiles but runs nothing
    """

    nvcc: Path
    version: str
    runtime: str
    has_driver: bool


@cache
def load() -> Toolkit:
    """Make TVM's CUDA side work in this process and in its forks. ToolkitError when it cannot."""
    nvcc = _nvcc()
    os.environ.update(SETTINGS)
    if shutil.which("nvcc") != str(nvcc):  # TVM calls it by its name
        os.environ["PATH"] = os.pathsep.join((str(nvcc.parent), os.environ.get("PATH", "")))
    version = _version(nvcc)
    driver = _loaded(DRIVER) or _loaded(_stand_in())
    runtime = _runtime(nvcc)
    _load_tvm()
    return Toolkit(
        nvcc=nvcc,
        version=version,
        runtime=runtime,
        has_driver=not hasattr(driver, "septune_no_driver"),
    )


@cache
def load_runtime() -> None:
    """Make what was compiled for CUDA loadable in this process. ToolkitError without a driver."""
    if not _loaded(DRIVER):
        raise ToolkitError(
            f"{DRIVER} cannot be loaded; expected NVIDIA's driver; run this on a machine with a GPU"
        )
    _runtime(None)
    _load_tvm()


@contextmanager
def compiling(target: Target, passes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Where `tvm.compile` makes code for `target`, a GPU. ToolkitError when it cannot.

    passes  settings of TVM's passes beyond our own
    """
    load()
    from tvm.ir.transform import PassContext

    with target.tvm(), PassContext(config={**PASSES, **(passes or {})}):
        yield


def wheels() -> Path | None:
    """The root of a CUDA 13 toolkit that was installed by pip, or None."""
    spec = find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    roots = (Path(folder) / "cu13" for folder in folders or ())
    return next((root for root in roots if root.is_dir()), None)


def runtime_library() -> Path:
    """The file of the CUDA runtime, of the wheels or the toolkit. ToolkitError without one."""
    nvcc = None
    with suppress(ToolkitError):
        nvcc = _nvcc()
    for path in _beside(nvcc):
        if path.is_file():
            return path
    raise ToolkitError(
        f"no {RUNTIME} is found; expected that of a CUDA 13 toolkit or of pip's packages; {INSTALL}"
    )


def _nvcc() -> Path:
    """$CUDA_HOME's, or else the one on PATH, or else that of the wheels."""
    home = os.environ.get("CUDA_HOME")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        if not os.access(nvcc, os.X_OK):
            raise ToolkitError(
                f"CUDA_HOME is {home} and has no bin/nvcc; expected the root of a CUDA toolkit; "
                f"correct the variable or unset it"
            )
        return nvcc
    if found := shutil.which("nvcc"):
        return Path(found)
    root = wheels()
    if root and os.access(root / "bin" / "nvcc", os.X_OK):
        return root / "bin" / "nvcc"
    raise ToolkitError(
        f"nvcc is neither on PATH nor under CUDA_HOME nor among the packages of this Python; "
        f"expected a CUDA 13 toolkit; {INSTALL}"
    )


def _version(nvcc: Path) -> str:
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    match = re.search(r"\bV(\d+(?:\.\d+)+)", done.stdout)
    if done.returncode or match is None:
        raise ToolkitError(
            f"{nvcc} --version says {(done.stdout + done.stderr).strip()[-200:]!r}; "
            f"expected a release; {INSTALL}"
        )
    return match[1]


def _runtime(nvcc: Path | None) -> str:
    """Load the CUDA runtime: the loader's own, or else that of the toolkit or of the wheels."""
    tried = [RUNTIME, *map(str, _beside(nvcc))]
    for name in tried:
        if _loaded(name):
            return name
    raise ToolkitError(
        f"{RUNTIME} cannot be loaded, tried {', '.join(tried)}; expected the CUDA 13 runtime, "
        f"which this TVM is linked against; {INSTALL}"
    )


def _beside(nvcc: Path | None) -> Iterator[Path]:
    """Where a toolkit keeps its libraries."""
    for root in (nvcc and nvcc.resolve().parents[1], wheels()):
        if root:
            yield from (
                root / lib / RUNTIME for lib in ("lib64", "lib", "targets/x86_64-linux/lib")
            )


def _loaded(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _stand_in() -> str:
    """A library of the driver's name that knows no device, compiled once for this user."""
    source = STAND_IN.read_bytes()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "septune" / f"no-driver-{hashlib.sha256(source).hexdigest()[:12]}"
    library = folder / DRIVER
    if not library.is_file():
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang", "g++"))), None)
        if compiler is None:
            raise ToolkitError(
                "no C compiler on PATH; expected cc, gcc or clang, which make a stand-in for the "
                "missing driver; install one, on Debian as root: apt-get install gcc"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # Under a name of its own, so that no other process loads half a library.
        with tempfile.TemporaryDirectory(dir=folder) as part:
            made = Path(part) / DRIVER
            options = ["-shared", "-fPIC", "-O1", "-x", "c", f"-Wl,-soname,{DRIVER}"]
            done = subprocess.run(
                [compiler, *options, "-o", made, STAND_IN], capture_output=True, text=True
            )
            if done.returncode:
                raise ToolkitError(
                    f"{compiler} cannot compile {STAND_IN.name}: {done.stderr.strip()[-300:]}; "
                    f"expected a C compiler that works; check it or install another"
                )
            made.replace(library)
    return str(library)


def _load_tvm() -> None:
    """Load TVM's CUDA runtime, which a TVM imported earlier gave up on without a word."""
    import tvm
    from tvm_ffi import get_global_func

    def works() -> bool:
        return get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None

    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    reason = "it does not offer what it should"
    if not works():
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            reason = str(error)
    if not works():
        raise ToolkitError(
            f"TVM's CUDA runtime {library.name} does not load: {reason}; expected TVM's wheel for "
            f"x86-64 Linux and a CUDA 13 runtime; {INSTALL}"
        )
