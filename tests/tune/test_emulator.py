"""The emulated machine: set up once and whole, exact in what it counts, honest about what fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from targets import arm64
from tune.emulator import MARK, qemu
from tune.emulator.cache import cache, once
from tune.emulator.guest import Guest, guest, unpack_debian, unpack_wheels
from tune.emulator.instrument import (
    GuestFailed,
    GuestTimeout,
    Instrument,
    between_marks,
    instrument,
)
from tune.errors import SetupError

# Two instructions a round, and marks around 1,000 and around 2,000 rounds.
LOOPS = r"""
#include <sys/resource.h>
#define ROUNDS(n) __asm__ volatile("mov x9, %0\n1: subs x9, x9, #1\nb.ne 1b" ::"r"(n) : "x9", "cc")
int main(void)
{
    register long few = 1000, many = 2000;
    getpriority(MARK, 0), getpriority(MARK, 0);
    ROUNDS(few);
    getpriority(MARK, 0);
    ROUNDS(many);
    getpriority(MARK, 0);
    return 0;
}
"""
# What TVM's loader calls as `main`.
CALLED = "int __tvm_ffi_main(void *self, const void *arguments, int count, void *result) {{ {} }}"


@pytest.fixture(scope="module")
def machine() -> Instrument:
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"the emulated machine needs {qemu.PROGRAM}")
    return instrument(guest(), arm64.linker() or ())


def build(source: str, output: Path, *options: str) -> Path:
    command = [
        *(arm64.linker() or ()),
        "-O1",
        f"-DMARK={MARK}",
        "-x",
        "c",
        "-",
        *options,
        "-o",
        str(output),
    ]
    subprocess.run(command, input=source.encode(), check=True)
    return output


def test_counts_are_exact_to_the_instruction(machine: Instrument, tmp_path: Path) -> None:
    program = build(LOOPS, tmp_path / "loops")
    out = tmp_path / "marks"
    command = machine.guest.command(program, plugin=machine.plugin(out))
    subprocess.run(command, check=True)
    nothing, few, many = between_marks(out)
    assert many - few == 2 * 1000
    assert 0 < few - nothing - 2 * 1000 < 5


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("*(volatile int *)0 = 1; return 0;", "SIGSEGV"),
        ("__builtin_trap();", "SIG"),
        ("_exit(7);", "status 7"),
    ],
    ids=["segfault", "trap", "exit"],
)
def test_a_call_that_crashes_is_told(
    machine: Instrument, tmp_path: Path, body: str, reason: str
) -> None:
    source = "void _exit(int);" + CALLED.format(body)
    library = build(source, tmp_path / "crash.so", "-shared", "-fPIC")
    with pytest.raises(GuestFailed, match=reason):
        machine.kernel(library, [np.zeros((2, 3), np.float32)])


def test_a_call_that_hangs_is_cut_off(machine: Instrument, tmp_path: Path) -> None:
    library = build(CALLED.format("for (;;) ;"), tmp_path / "hang.so", "-shared", "-fPIC")
    with pytest.raises(GuestTimeout, match="no end after 1 s"):
        machine.kernel(library, [np.zeros(1, np.float32)], timeout_s=1.0)


def test_what_is_no_library_is_told(machine: Instrument, tmp_path: Path) -> None:
    library = tmp_path / "text"
    library.write_text("hello")
    with pytest.raises(GuestFailed, match=r"library\.so"):
        machine.kernel(library, [np.zeros(1, np.float32)])


def test_arguments_reach_the_call_and_its_output_comes_back(
    machine: Instrument, tmp_path: Path
) -> None:
    body = """
        struct tensor { float *data; int device[2]; int ndim; int dtype; long *shape; };
        struct any { int type, pad; struct tensor *tensor; };
        const struct any *any = arguments;
        for (int i = 0; i < any[0].tensor->shape[1]; ++i)
            any[1].tensor->data[i] = 2 * any[0].tensor->data[i];
        return count == 2 && any[0].tensor->ndim == 2 ? 0 : -1;
    """
    library = build(CALLED.format(body), tmp_path / "double.so", "-shared", "-fPIC")
    x = np.arange(5, dtype=np.float32).reshape(1, 5)
    count = machine.kernel(library, [x, np.full((1, 5), np.nan, np.float32)])
    np.testing.assert_array_equal(count.y.reshape(x.shape), 2 * x)
    assert count.instructions == sum(len(code) * times for times, code in count.blocks)
    assert 10 < count.instructions < 2000


def test_the_guest_runs_tvm_and_holds_no_compiler(machine: Instrument) -> None:
    system: Guest = machine.guest
    code = "import os, tvm.rpc; print(os.uname().machine, tvm.__version__)"
    done = subprocess.run(system.python("-c", code), capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "aarch64"
    assert not list(system.site.rglob("*compiler*.so"))


def test_a_folder_is_made_once_for_a_stamp(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "content").write_text(str(len(made)))

    for _ in range(2):
        assert once(tmp_path / "thing", "1.0", make) == tmp_path / "thing"
    assert (tmp_path / "thing" / "content").read_text() == "1"
    once(tmp_path / "thing", "2.0", make)
    assert (tmp_path / "thing" / "content").read_text() == "2"
    assert len(made) == 2


def test_an_interrupted_set_up_is_redone_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "thing", "1.0", fail)
    assert not (tmp_path / "thing").exists()
    once(tmp_path / "thing", "1.0", lambda folder: (folder / "whole").touch())
    assert {path.name for path in tmp_path.iterdir()} == {"thing", "thing.lock"}
    assert {path.name for path in (tmp_path / "thing").iterdir()} == {"whole", "stamp"}


def test_the_cache_is_where_the_desktop_standard_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache() == Path("/elsewhere/septune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache() == Path.home() / ".cache" / "septune"


def test_a_missing_emulator_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="apt-get install qemu-user"):
        guest()
    program = tmp_path / qemu.PROGRAM
    program.write_text("#!/bin/sh\necho qemu-aarch64 version 7.2.0\n")
    program.chmod(0o755)
    with pytest.raises(SetupError, match=r"takes no -plugin.*not qemu-user-static"):
        guest()


def test_missing_package_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="no apt-get on PATH"):
        unpack_debian(["python3"], tmp_path / "root", tmp_path / "apt")


def test_packages_that_cannot_be_had_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bin_ = tmp_path / "root" / "usr" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python3.11").touch()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SetupError, match="pip cannot fetch aarch64 wheels of numpy"):
        unpack_wheels(["numpy"], tmp_path / "root", tmp_path / "site", tmp_path / "wheels")
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(SetupError, match="status 1"):
        unpack_wheels(["numpy"], tmp_path / "root", tmp_path / "site", tmp_path / "wheels")
