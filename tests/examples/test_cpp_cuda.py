"""The C++ application and a network for a GPU, on the device made of host memory: as in Python.

The driver and the CUDA runtime are the device's, TVM's CUDA runtime is the wheel's own.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cuda_device
import numpy as np
import pytest
from test_cpp import CPP, change, compiled, refused, run

from kernels import kernel, kernels_for
from targets import machines
from tune import pipeline, weights
from tune.compile import compile_network, manifest, write_manifest
from tune.graph import assemble
from tune.mobilenet import MobileNet
from tune.plan import Choice
from tune.runtime import Network, read_manifest

SM_90 = machines("cuda").DEVICES["sm_90"]
SMALL = MobileNet(alpha=0.25, resolution=32, classes=5, batch=2, dtype="float16")
IMAGES = 5


def build(path: str) -> None:
    """Every layer by the first of TVM's kernels, at its default. Runs over there."""
    chosen = []
    for layer in SMALL.layers:
        name = next(n for n in kernels_for(layer.workload, SM_90) if n.startswith("te.cuda."))
        config = kernel(name).space(layer.workload, SM_90).default
        chosen.append(Choice(layers=(layer,), kernel=name, config=config, why="default"))
    folded, library = weights.fold(weights.random(SMALL, 0), SMALL), Path(path)
    size = compile_network(assemble(chosen, folded, SM_90), SM_90, library)
    written = manifest(SMALL, chosen, folded, SM_90, threads=1, library=library, weights_bytes=size)
    write_manifest(written, library)


def python_logits(path: str, images: np.ndarray) -> np.ndarray:
    """Runs over there."""
    import tvm

    network = Network(tvm.runtime.load_module(path), read_manifest(Path(path)), tvm.cuda(0))
    return network.many(images)


@pytest.fixture(scope="module")
def device() -> Iterator[cuda_device.Device]:
    made = cuda_device.Device()
    yield made
    made.close()


@pytest.fixture(scope="module")
def library(device: cuda_device.Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "net.so"
    device.submit(build, str(path)).result()
    return path


@pytest.fixture(scope="module")
def on_device(device: cuda_device.Device) -> dict[str, str]:
    """The environment of a machine with a GPU."""
    return os.environ | {"LD_LIBRARY_PATH": device.submit(cuda_device.libraries).result()}


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = (CPP.parents[1] / "tests" / "examples" / "checks.cc", CPP / "photo.cc")
    return compiled(tmp_path_factory.mktemp("checks") / "checks", *sources)


def test_answers_are_pythons_one_inference_after_the_other(
    checks: Path, library: Path, device: cuda_device.Device, on_device: dict[str, str]
) -> None:
    """Three inferences of two images, the last one filled up; from the second on it is a graph."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (IMAGES, 32, 32, 3)).astype(np.float16)
    given = images.astype(np.float32).tobytes()
    done = run(checks, "batch", library, str(IMAGES), input=given, env=on_device)
    logits = np.frombuffer(done.stdout, np.float32).reshape(IMAGES, 5)
    expected = device.submit(python_logits, str(library), images).result()
    assert np.ptp(expected, axis=0).min() > 0
    np.testing.assert_array_equal(logits, expected.astype(np.float32))


def test_clones_do_not_disturb_each_other(
    checks: Path, library: Path, on_device: dict[str, str]
) -> None:
    """While one records its graph, CUDA refuses what another would do."""
    done = run(checks, "together", library, "2", env=on_device)
    assert done.stdout.decode() == "0 of 4\n"


def test_wrong_arguments_are_told_and_do_no_harm(
    checks: Path, library: Path, on_device: dict[str, str]
) -> None:
    said = run(checks, "wrong", library, env=on_device).stdout.decode().splitlines()
    assert said[0] == "inputs are picture; expected image; pass memory for each by that name"
    assert said[-1] == "nothing"


EXPECTED = {
    "libcuda.so.1": "NVIDIA's driver; run this on a machine with a GPU",
    "libcudart.so.13": "CUDA 13's; put it beside libtvm_runtime.so",
    "libtvm_runtime_cuda.so": "that of apache-tvm's wheel; put it beside libtvm_runtime.so",
}


@pytest.mark.parametrize("broken", EXPECTED)
def test_what_cannot_be_loaded_is_told(
    broken: str, checks: Path, library: Path, on_device: dict[str, str], tmp_path: Path
) -> None:
    """An empty file ends the loader's search, even on a machine that has a whole one."""
    (tmp_path / broken).touch()
    folders = f"{tmp_path}:{on_device['LD_LIBRARY_PATH']}"
    said = refused(checks, "ports", library, env=on_device | {"LD_LIBRARY_PATH": folders})
    assert said == (f"cannot load {tmp_path / broken}: file too short; expected {EXPECTED[broken]}")


def test_no_gpu_is_told(checks: Path, library: Path, on_device: dict[str, str]) -> None:
    said = refused(checks, "ports", library, env=on_device | {"CUDA_VISIBLE_DEVICES": ""})
    assert said.startswith("CUDA finds no GPU; expected one, and a driver of version 580 or newer")


@pytest.mark.parametrize(
    ("made_for", "found", "runs"),
    [
        ("sm_90", "90", True),
        ("sm_90", "100", False),
        ("sm_80", "90", False),
        ("sm_80", "89", True),
        ("sm_89", "86", False),
        ("sm_75", "80", False),
        ("sm_100", "103", False),
    ],
)
def test_gpu_of_another_kind(
    made_for: str, found: str, runs: bool, checks: Path, copied: Path, on_device: dict[str, str]
) -> None:
    """As `can_run` has it in Python."""
    target = {"kind": "cuda", "device": made_for, "mcpu": made_for, "features": []}
    change(copied, target=target)
    environment = on_device | {"DEVICE_CAPABILITY": found}
    if runs:
        run(checks, "ports", copied, env=environment)
        return
    assert refused(checks, "ports", copied, env=environment) == (
        f"{copied} was built for {made_for}, whose code this GPU, host memory of sm_{found}, "
        f"cannot run; expected a build for it; build it with --device sm_{found}"
    )


def test_package_runs_where_there_is_a_driver(
    library: Path, on_device: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines("cuda"), "can_run", lambda target: False)  # a real GPU cannot
    folder = tmp_path / "package"
    pipeline.package(library, "cuda", folder, progress=lambda _: None)
    driver = tmp_path / "driver"
    driver.mkdir()
    for name in ("libcuda.so.1", "libcudart.so.13"):
        shutil.copy(Path(on_device["LD_LIBRARY_PATH"]) / name, driver)
    words = [folder / "classify", folder / "net.so", "--json", "--repeat", "2"]
    done = run(*words, env={"LD_LIBRARY_PATH": driver})
    assert json.loads(done.stdout)["inferences"] == 2
