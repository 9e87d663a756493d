"""What tests of several rooms ask for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from targets import arm64, machines
from targets.target import Target
from tune import pipeline
from tune.emulator import qemu
from tune.emulator.cache import once
from tune.mobilenet import MobileNet
from tune.runners.estimate import EstimateRunner


@pytest.fixture(scope="module")
def counting() -> Iterator[EstimateRunner]:
    """Runs code for a cortex-a76 in an emulator and counts its instructions."""
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"arm64 code needs {qemu.PROGRAM}")
    with EstimateRunner(arm64.DEVICES["cortex-a76"], workers=2) as runner:
        yield runner


@pytest.fixture(scope="session")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.0/224 with the ImageNet weights for one thread of this machine, as the log has it."""
    return whole(MobileNet(), machines("x86").host(), tmp_path_factory)


@pytest.fixture(scope="session")
def mobilenet_a76(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.0/128 with the same weights for a cortex-a76, its configs carried over from 1.0/224: an
    inference of that is emulated in up to 15 s.
    """
    return whole(MobileNet(resolution=128), arm64.DEVICES["cortex-a76"], tmp_path_factory)


def whole(model: MobileNet, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of a network, which all processes of a session share."""

    def build(folder: Path) -> None:
        log, library = pipeline.Log.at(None, target), folder / "mobilenet.so"
        pipeline.build(model, target, log, threads=1, weights=None, seed=0, output=library)

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return once(folder / target.device, "of this session", build) / "mobilenet.so"
