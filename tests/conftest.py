"""What tests of several rooms ask for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from targets.arm64 import DEVICES
from tune.emulator import qemu
from tune.runners.estimate import EstimateRunner


@pytest.fixture(scope="module")
def counting() -> Iterator[EstimateRunner]:
    """Runs code for a cortex-a76 in an emulator and counts its instructions."""
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"arm64 code needs {qemu.PROGRAM}")
    with EstimateRunner(DEVICES["cortex-a76"], workers=2) as runner:
        yield runner
