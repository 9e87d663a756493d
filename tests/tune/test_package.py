"""A folder that runs where there is no Python: what is in it, how large it is, and that it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from targets import cuda_toolkit, machines
from targets.target import Endpoint
from tune import cli, package, pipeline
from tune.emulator import qemu
from tune.emulator.guest import guest
from tune.errors import SetupError, UsageError
from tune.mobilenet import MobileNet

ROOT = Path(__file__).parents[2]
COFFEE = ROOT / "examples" / "photos" / "coffee.png"
HOST = machines("x86").host()
SMALL = MobileNet(alpha=0.25, resolution=32, classes=5)
MOST_BYTES = 6 << 20  # beside the weights
FILES = {
    "README.md",
    "classify",
    "include/septune.hpp",
    "lib/libtvm_ffi.so",
    "lib/libtvm_runtime.so",
    "net.json",
    "net.so",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    log, library = pipeline.Log(path=folder / "none.jsonl"), folder / "net.so"
    pipeline.build(SMALL, HOST, log, threads=1, weights=None, seed=1, output=library)
    return library


def packaged(library: Path, folder: Path, kind: str = "x86") -> dict[str, Any]:
    return pipeline.package(library, kind, folder, progress=lambda _: None)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def bare_root(folder: Path, program: Path) -> None:
    """Below `folder`, the C and C++ libraries that `program` and its own need, and nothing else."""
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for found in re.findall(r"(/\S+) \(0x", needed):
        path = Path(found)
        if "tvm" not in path.name:
            (folder / path.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to("/"))


def changing_root() -> list[str] | None:
    """The command that makes a folder the root, for whoever may; None for nobody."""
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    chroot, unshare = (shutil.which(name, path=search) for name in ("chroot", "unshare"))
    alone = [[chroot]] if chroot else []
    mapped = [[unshare, "--user", "--map-root-user", chroot]] if chroot and unshare else []
    for command in (*alone, *mapped):
        if subprocess.run([*command, "/", "/bin/true"], capture_output=True).returncode == 0:
            return command
    return None


def test_runs_with_nothing_but_libc_and_libstdcxx(library: Path, tmp_path: Path) -> None:
    made = packaged(library, tmp_path / "package")
    assert files(tmp_path / "package") == FILES
    root = tmp_path / "root"
    shutil.copytree(tmp_path / "package", root / "app")
    Image.open(COFFEE).save(root / "app" / "photo.ppm")
    bare_root(root, root / "app" / "classify")
    there = {Path(name).name.split(".so")[0] for name in files(root) if ".so" in name}
    system = {"libc", "libm", "libstdc++", "libgcc_s", "libdl", "libpthread", "ld-linux-x86-64"}
    assert there <= system | {"libtvm_ffi", "libtvm_runtime", "net"}

    command, inside = changing_root(), "/app"
    environment = {"LD_LIBRARY_PATH": "/app/lib"}  # for want of /proc, as its text says
    if command is None:
        inside, environment = str(root / "app"), {}
    words = [f"{inside}/classify", f"{inside}/net.so", "--json", f"{inside}/photo.ppm"]
    words = [*(command or ()), *([str(root)] if command else ()), *words]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert len(told["photos"][f"{inside}/photo.ppm"]) == 5
    assert told["threads"] == made["measured"]["threads"] == 1


def test_tells_what_it_took(library: Path, tmp_path: Path) -> None:
    made = packaged(library, tmp_path / "package")
    sizes = {name: (tmp_path / "package" / name).stat().st_size for name in FILES}
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert sum(made["parts"].values()) == sum(sizes.values())
    assert made["parts"]["weights"] == manifest["weights_bytes"]
    assert made["parts"]["runtime"] == sum(size for name, size in sizes.items() if "tvm" in name)
    assert sum(made["parts"].values()) - made["parts"]["weights"] <= MOST_BYTES
    measured = made["measured"]
    assert 0 < measured["first_s"] < 10
    assert 0 < measured["load_s"] < 10
    assert 5 << 20 < measured["resident_bytes"] < 200 << 20
    assert re.fullmatch(r"2\.\d+", made["glibc"])


def test_an_application_is_built_in_it_as_its_text_says(library: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    packaged(library, folder)
    text = (folder / "README.md").read_text()
    blocks = text.split("```\n")[1::2]
    include, use = next(block for block in blocks if "#define" in block).split("\n\n")
    (folder / "app.cc").write_text(
        f"{include}\n#include <cstdio>\nint main() {{\n"
        f"const float images[2 * 32 * 32 * 3] = {{}};\nstd::size_t count = 2;\n{use}\n"
        'std::printf("%zu\\n", logits.size());\n}\n'
    )
    command = next(block for block in blocks if "g++" in block)
    subprocess.run(["bash", "-euc", command], cwd=folder, check=True)
    moved = shutil.move(folder, tmp_path / "moved")
    done = subprocess.run(["./app"], cwd=moved, env={}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("10\n", "")
    assert "32 x 32 x 3 of float32: RGB, value / 127.5 - 1" in text


def test_a_folder_in_use_is_left_alone(library: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    for place in (tmp_path, tmp_path / "notes"):
        with pytest.raises(UsageError) as error:
            packaged(library, place)
        assert str(error.value) == (
            f"{place} is in use; expected a new or empty folder; choose another -o"
        )
    assert files(tmp_path) == {"notes"}


def test_a_library_for_another_kind_of_machine(library: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        packaged(library, tmp_path / "package", "arm64")
    assert str(error.value) == (
        f"{library} was built for x86; expected arm64, as --target says; pass --target x86"
    )
    assert not (tmp_path / "package").exists()


@pytest.fixture
def for_a_gpu(library: Path, tmp_path: Path) -> Path:
    """A library whose manifest says so."""
    manifest = json.loads(library.with_suffix(".json").read_text())
    manifest["target"] = {"kind": "cuda", "device": "h100", "mcpu": "sm_90", "features": []}
    (tmp_path / "net.json").write_text(json.dumps(manifest))
    return Path(shutil.copy(library, tmp_path / "net.so"))


def test_for_a_gpu_it_has_all_but_the_driver(
    for_a_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it runs is tested where the network is one for a GPU."""
    monkeypatch.setattr(machines("cuda"), "can_run", lambda target: False)
    folder = tmp_path / "package"
    made = packaged(for_a_gpu, folder, "cuda")
    gpu_files = {"lib/libcudart.so.13", "lib/libtvm_runtime_cuda.so"}
    assert files(folder) == FILES | gpu_files
    assert made["measured"] is None
    assert sum(made["parts"].values()) - made["parts"]["weights"] <= MOST_BYTES + (3 << 19)
    text = (folder / "README.md").read_text()
    assert "for h100" in text
    assert "and except for NVIDIA's driver, 580 or newer" in text


def test_cuda_without_its_runtime_is_told(
    for_a_gpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_toolkit, "_beside", lambda nvcc: iter(()))
    with pytest.raises(SetupError) as error:
        packaged(for_a_gpu, tmp_path / "package", "cuda")
    assert str(error.value) == (
        "no libcudart.so.13 is found; expected that of a CUDA 13 toolkit or of pip's packages; "
        "run: pip install -e '.[cuda]'"
    )
    assert not (tmp_path / "package").exists()


def test_a_device_that_is_not_known(library: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer.so"
    shutil.copy(library, newer)
    manifest = json.loads(library.with_suffix(".json").read_text())
    manifest["target"]["device"] = "znver99"
    newer.with_suffix(".json").write_text(json.dumps(manifest))
    told = r"newer\.so was built for znver99, which is not known; expected one of x86-64-v3, "
    with pytest.raises(UsageError, match=told):
        packaged(newer, tmp_path / "package")
    with pytest.raises(UsageError, match=told):
        list(pipeline.classify(newer, [COFFEE], board=Endpoint(host="localhost", port=9)))


def test_a_program_that_hangs_is_told(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "RUN_TIMEOUT_S", 0.0)
    with pytest.raises(SetupError, match=r"/classify gives no answer after 0 s; expected one in"):
        packaged(library, tmp_path / "package")


def test_a_compiler_that_fails_is_told(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no headers >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError) as error:
        packaged(library, tmp_path / "package")
    assert str(error.value).startswith(f"{broken} cannot build the program: no headers; expected ")
    assert not (tmp_path / "package").exists()


def test_command_builds_packages_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, stored = tmp_path / "package", tmp_path / "stored.json"
    words = ["package", "--alpha", "0.25", "--resolution", "32", "--threads", "1"]
    words += ["--log", str(tmp_path / "none.jsonl"), "-o", str(folder), "--json", str(stored)]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    parts = json.loads(stored.read_text())["parts"]
    assert lines[0].split() == ["part", "bytes"]
    assert lines[1].split() == ["weights", f"{parts['weights']:,}"]
    assert re.match(r"[\d.]+ MiB and the weights; glibc 2\.\d+ or newer", lines[-4])
    assert re.match(r"load [\d.]+ ms, first inference [\d.]+ ms, then .*; resident ", lines[-3])
    assert lines[-2:] == [f"folder: {folder}", f"json: {stored}"]
    assert (folder / "mobilenet_v1.so").is_file()
    assert len((folder / "labels.txt").read_text().splitlines()) == 1001


@pytest.mark.slow
def test_for_arm64_it_runs_on_an_emulated_system(mobilenet_a76: Path, tmp_path: Path) -> None:
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"the emulated system needs {qemu.PROGRAM}")
    machine = guest()
    folder = tmp_path / "package"
    made = packaged(mobilenet_a76, folder, "arm64")
    assert files(folder) == {name.replace("net.", "mobilenet.") for name in FILES} | {"labels.txt"}
    assert made["measured"] is None
    assert sum(made["parts"].values()) - made["parts"]["weights"] <= MOST_BYTES
    Image.open(COFFEE).save(folder / "photo.ppm")
    emulated = [machine.emulator.path, "-L", str(machine.root), "-cpu", "cortex-a76"]
    done = subprocess.run(
        [*emulated, "./classify", "mobilenet.so", "--repeat", "1", "photo.ppm"],
        cwd=folder,
        env={},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    photo, likeliest, *_ = done.stdout.splitlines()
    assert (photo, likeliest.split()[1]) == ("photo.ppm", "espresso")


@pytest.mark.slow
def test_the_whole_network_takes_six_mebibytes_and_its_weights(
    mobilenet: Path, tmp_path: Path
) -> None:
    parts = packaged(mobilenet, tmp_path / "package")["parts"]
    assert sum(parts.values()) - parts["weights"] <= MOST_BYTES
