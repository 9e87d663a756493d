"""Python wheels for aarch64, fetched from wherever this machine's pip takes its own."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tune.errors import SetupError
from tune.printed import last_line

# What only compiling needs; of these the compiler's library is the bulk.
LEFT_OUT = re.compile(r"libtvm_compiler|libtvm_runtime_cuda|/include/|/tests?/")
MANYLINUX = ("2_28", "2_27", "2_26", "2_24", "2_17", "2014")


def unpack(requirements: Sequence[str], python: str, site: Path, scratch: Path) -> None:
    """Unpack wheels of exactly `requirements` into `site`, for that version of Python, e.g. 3.11.

    SetupError when they cannot be had.
    """
    platforms = (part for tag in MANYLINUX for part in ("--platform", _platform(tag)))
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
    target = ("--only-binary", ":all:", "--python-version", python, *platforms)
    done = subprocess.run(
        [*pip, "--dest", str(scratch), *target, *requirements],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        reason = last_line(done.stderr, f"status {done.returncode}")
        raise SetupError(
            f"pip cannot fetch aarch64 wheels of {', '.join(requirements)}: {reason}; expected it "
            f"to work unattended; see that this Python has pip and that pip reaches its index"
        )
    for wheel in sorted(scratch.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                site, [name for name in archive.namelist() if not LEFT_OUT.search(name)]
            )


def _platform(tag: str) -> str:
    return f"manylinux{tag}_aarch64" if tag.isdigit() else f"manylinux_{tag}_aarch64"
