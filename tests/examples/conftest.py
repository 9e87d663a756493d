"""What tests of several applications share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copied(library: Path, tmp_path: Path) -> Path:
    """A library and its manifest that a test may spoil."""
    for suffix in (".so", ".json"):
        shutil.copy(library.with_suffix(suffix), tmp_path / f"net{suffix}")
    return tmp_path / "net.so"
