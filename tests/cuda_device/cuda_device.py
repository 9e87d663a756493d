"""A CUDA device made of host memory, on which TVM's own CUDA runtime runs TVM's own CUDA C.

`activate` puts two libraries in the place of the driver and the CUDA runtime and compiles kernels
with g++ in nvcc's stead: a block's threads are fibers, with barriers, shuffles, warp matrix
instructions and float16. Memory starts as NaN, with fences around each allocation; a launch fails
when it writes to a fence, accesses a vector that is not aligned, or waits at a barrier that
others never reach. Every other phase between barriers runs its threads backwards.

A kernel that is not TVM's, say Triton's cubin, cannot run: its launches are recorded, and
`stand_in` names a Python function that computes in its place.

Times mean nothing here. Activate it in a process of its own, before anything loads CUDA:
`Device` is such a process.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import math
import multiprocessing
import re
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

SOURCES = Path(__file__).parent
SHIM = SOURCES / "shim"
CHECKED = ("-O1", "-fsanitize=alignment", f"-I{SHIM}")
Answer = TypeVar("Answer")
_KEPT: list[Any] = []  # what C holds on to

DYNAMIC_SHARED = re.compile(r"extern __shared__ .*?uchar (\w+)\[\];")
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\) \{')


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of a kernel.

    dependent  whether it may come ahead of the end of the launch before
    arguments  their bits as whole numbers; a pointer is an address in this process
    sizes      of the arguments in bytes; none when the module did not tell
    by         "host", "stand-in" or "nothing": what computed
    graph      the how manieth launch of a CUDA graph it belongs to; 0 for none
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    dependent: bool
    arguments: tuple[int, ...]
    sizes: tuple[int, ...]
    by: str
    graph: int


class Device:
    """Processes whose CUDA device is host memory; they import what this one can."""

    def __init__(self, processes: int = 1) -> None:
        self._pool = ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=activate
        )

    def submit(self, function: Callable[..., Answer], *arguments: Any) -> Future[Answer]:
        """Call `function`, of a module, over there."""
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def activate() -> None:
    """Make this process's CUDA device host memory."""
    _driver()
    from targets.cuda_toolkit import load

    load()
    from tvm_ffi import register_global_func

    register_global_func("tvm_callback_cuda_compile", kernels, override=True)


def kernels(source: str) -> bytes:
    """CUDA C to the image of a module that the device runs."""
    library = _folder() / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        text = DYNAMIC_SHARED.sub(r"uchar *\1 = the_thread->shared;", source)
        path = library.with_suffix(".cc")
        path.write_text(text + "".join(_exported(*match) for match in KERNEL.findall(source)))
        part = library.with_suffix(".o")
        _compile("-c", *CHECKED, "-include", str(_header()), "-o", str(part), str(path))
        _compile("-shared", "-o", str(library), str(part))  # without the sanitizer's library
    return b"HOST:" + bytes(library) + b"\0"


def launches() -> list[Launch]:
    """All launches in this process since the last call."""
    return [_launch(line) for line in _driver().device_launches().splitlines()]


def stand_in(kernel: str, function: Callable[[Launch], None]) -> None:
    """Let `function` compute whenever a kernel of that name, none of TVM's, is launched.

    What its arguments point to can be read and written through `array`.
    """

    def called(record: bytes) -> int:
        try:
            function(_launch(record))
        except Exception:  # a worker's boundary: C calls this
            traceback.print_exc()
            return 1
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)(called)
    _KEPT.append(callback)
    _driver().device_stand_in(kernel.encode(), callback)


def array(pointer: int, shape: Sequence[int], dtype: str) -> np.ndarray:
    """The device's memory from `pointer` on, to be read and written."""
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = (ctypes.c_ubyte * size_bytes).from_address(pointer)
    return np.frombuffer(memory, dtype).reshape(shape)


def _launch(record: bytes) -> Launch:
    fields = json.loads(record)
    return Launch(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


@cache
def _driver() -> ctypes.CDLL:
    """The library that is the device. Both stay loaded under the names that TVM asks for."""
    folder = _folder()
    driver, runtime = folder / "libcuda.so.1", folder / "libcudart.so.13"
    _compile("-shared", "-O2", *_named(driver), str(SOURCES / "device.cc"))
    _compile(
        "-shared",
        "-O2",
        *_named(runtime),
        f"-Wl,--version-script={SOURCES / 'runtime.map'}",
        str(SOURCES / "runtime.cc"),
        str(driver),
    )
    library = ctypes.CDLL(str(driver))
    library.device_launches.restype = ctypes.c_char_p
    _KEPT.append(ctypes.CDLL(str(runtime)))
    return library


def _named(library: Path) -> tuple[str, ...]:
    return ("-o", str(library), f"-Wl,-soname,{library.name}")


def libraries() -> str:
    """The folder of the device's two libraries: on LD_LIBRARY_PATH it is another program's, too.

    As long as this process lives, which keeps the kernels that it has compiled there.
    """
    _driver()
    return str(_folder())


@cache
def _folder() -> Path:
    """Where this process keeps what it compiles, gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="cuda-device-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def _header() -> Path:
    """What kernels include, compiled once for all of this process."""
    path = _folder() / "kernels.h"
    path.write_text("".join(f"#include <{name.name}>\n" for name in sorted(SHIM.iterdir())))
    _compile("-x", "c++-header", *CHECKED, "-o", f"{path}.gch", str(path))
    return path


def _exported(name: str, parameters: str) -> str:
    """C++ that hands the kernel to the device."""
    plain = (parameter.replace("__restrict__", "") for parameter in parameters.split(","))
    types = [parameter.rsplit(maxsplit=1)[0].strip() for parameter in plain]
    values = ", ".join(f"*({kind} *)arguments[{i}]" for i, kind in enumerate(types))
    sizes = ", ".join(f"sizeof({kind})" for kind in types)
    return f"""
static void run_{name}(const Thread *thread, void **arguments) {{
  the_thread = thread;
  {name}({values});
}}
static const unsigned sizes_{name}[] = {{{sizes}, 0}};
extern "C" const HostKernel host_{name} = {{run_{name}, sizes_{name}}};
"""


def _compile(*arguments: str) -> None:
    command = ["g++", "-std=c++17", "-fPIC", "-w", "-U_FORTIFY_SOURCE", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++: {done.stderr[:2000]}")
