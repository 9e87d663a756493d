"""TVM compiles for a GPU on a machine that has neither a GPU nor a driver, or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from targets.cuda_toolkit import DRIVER, wheels

ROOT = Path(__file__).parents[2]
FAT_BINARY = bytes.fromhex("50ed55ba")  # what a file of nvcc begins with

LOAD = """
from targets.cuda_toolkit import ToolkitError, load
try:
    print(load(), load() is load())
except ToolkitError as error:
    print("refused:", error)
"""
COMPILE = """
import tvm
from tvm import te
x = te.placeholder((64,), "float16", "x")
y = te.compute((64,), lambda i: x[i] * x[i], "y")
schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, y])}))
schedule.bind(schedule.get_loops("y")[0], "threadIdx.x")
target = tvm.target.Target({"kind": "cuda", "arch": "sm_90"}, host={"kind": "llvm"})
with target:
    tvm.compile(schedule.mod, target=target).export_library("kernel.so")
"""


def driver() -> bool:
    """Whether the machine has one, asked elsewhere: what is loaded here would count."""
    code = f"import ctypes; ctypes.CDLL({DRIVER!r})"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def run(code: str, folder: Path, **environment: str | None) -> str:
    """What `code` prints in a process of its own, in `folder`, with a cache of its own."""
    changed = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder), **environment}
    merged = {**os.environ, **changed}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tools(folder: Path, *names: str) -> str:
    """A PATH with nothing but `names`."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return str(folder)


@pytest.mark.parametrize("first", ["", "import tvm\n"], ids=["load first", "tvm first"])
def test_a_gpu_of_elsewhere_is_compiled_for(first: str, tmp_path: Path) -> None:
    run(first + LOAD + COMPILE, tmp_path)
    assert FAT_BINARY in (tmp_path / "kernel.so").read_bytes()


def test_wheels_alone_will_do(tmp_path: Path) -> None:
    """With no toolkit installed but by pip."""
    path = tools(tmp_path / "bin", "gcc", "g++", "cc", "as", "ld", "sh", "cat", "rm")
    printed = run(LOAD + COMPILE, tmp_path, PATH=path, CUDA_HOME=None)
    assert f"{wheels()}/bin/nvcc" in printed
    assert printed.endswith("True\n")
    assert FAT_BINARY in (tmp_path / "kernel.so").read_bytes()


def test_cuda_home_goes_first(tmp_path: Path) -> None:
    printed = run(LOAD, tmp_path, CUDA_HOME=str(wheels()))
    assert f"{wheels()}/bin/nvcc" in printed


def test_cuda_home_without_a_compiler_is_refused(tmp_path: Path) -> None:
    assert run(LOAD, tmp_path, CUDA_HOME="/nowhere") == (
        "refused: CUDA_HOME is /nowhere and has no bin/nvcc; expected the root of a CUDA toolkit; "
        "correct the variable or unset it\n"
    )


def test_no_toolkit_at_all(tmp_path: Path) -> None:
    hidden = "import targets.cuda_toolkit as toolkit\ntoolkit.wheels = lambda: None\n"
    path = tools(tmp_path / "bin", "gcc")
    assert run(hidden + LOAD, tmp_path, PATH=path, CUDA_HOME=None) == (
        "refused: nvcc is neither on PATH nor under CUDA_HOME nor among the packages of this "
        "Python; expected a CUDA 13 toolkit; run: pip install -e '.[cuda]'\n"
    )


@pytest.mark.parametrize("first", ["", "import tvm\n"], ids=["load first", "tvm first"])
def test_what_tvm_says_nothing_about_is_said(first: str, tmp_path: Path) -> None:
    """A driver that lacks what TVM asks for: TVM would compile to a module of source only."""
    source = tmp_path / "empty.c"
    source.write_text("int septune_no_driver;")
    command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", "-o", tmp_path / DRIVER, source]
    subprocess.run(command, check=True)
    printed = run(first + LOAD, tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    assert printed.startswith("refused: TVM's CUDA runtime libtvm_runtime_cuda.so does not load: ")
    assert "undefined symbol: cu" in printed


@pytest.mark.skipif(driver(), reason="this machine has a driver and needs no stand-in")
def test_no_compiler_for_the_stand_in(tmp_path: Path) -> None:
    printed = run(LOAD, tmp_path, PATH="", CUDA_HOME=str(wheels()))
    assert printed.startswith("refused: no C compiler on PATH; expected cc, gcc or clang")
