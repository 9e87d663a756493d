"""The last-level caches of this machine, as Linux describes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

KIB = 1024


@cache
def last_level(cpus: Path = Path("/sys/devices/system/cpu")) -> tuple[int, int]:
    """Bytes of the largest, and how many of them there are; zeros where Linux does not say."""
    found: dict[tuple[int, str], int] = {}
    for folder in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, size, shared = (
                (folder / name).read_text().strip() for name in ("level", "size", "shared_cpu_list")
            )
            found[int(level), shared] = int(size.removesuffix("K")) * KIB
        except (OSError, ValueError):
            continue
    deepest = max((level for level, _ in found), default=0)
    sizes = [size for (level, _), size in found.items() if level == deepest]
    return max(sizes, default=0), len(sizes)
