"""Folders that are set up once for this user, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache() -> Path:
    """Where this user's set-ups live: $XDG_CACHE_HOME/septune, by default ~/.cache/septune."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "septune"


def once(folder: Path, stamp: str, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` unless that was done before under the same stamp.

    stamp  all that the content depends on, e.g. versions

    It is filled under another name and renamed at the end, so that one that was interrupted is
    never taken for a whole one. Who asks meanwhile waits.
    """
    mark = folder / "stamp"
    if _reads(mark, stamp):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _reads(mark, stamp):
            return folder
        for leftover in folder.parent.glob(f"{folder.name}.part*"):
            shutil.rmtree(leftover)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part", dir=folder.parent))
        make(part)
        (part / "stamp").write_text(stamp)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    return folder


def _reads(mark: Path, stamp: str) -> bool:
    return mark.is_file() and mark.read_text() == stamp
