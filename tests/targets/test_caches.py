"""What Linux says of caches, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.te import stream
from targets import x86
from targets.caches import last_level

MIB = 1 << 20


def described(folder: Path, *caches: tuple[str, str, str, str]) -> Path:
    """Like /sys/devices/system/cpu; of each cache a CPU, its level, its size, and who shares it."""
    for number, (cpu, level, size, shared) in enumerate(caches):
        index = folder / f"cpu{cpu}" / "cache" / f"index{number}"
        index.mkdir(parents=True)
        for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
            (index / name).write_text(f"{value}\n")
    return folder


def test_each_cache_counts_once(tmp_path: Path) -> None:
    cores = [(cpu, "3", "32768K", "0-1" if cpu in "01" else "2-3") for cpu in "0123"]
    own = [(cpu, "2", "1024K", cpu) for cpu in "0123"]
    assert last_level(described(tmp_path, *own, *cores)) == (32 * MIB, 2)


def test_what_linux_does_not_say(tmp_path: Path) -> None:
    assert last_level(tmp_path) == (0, 0)
    assert last_level(described(tmp_path / "torn", ("0", "", "32768K", "0"))) == (0, 0)
    assert last_level(described(tmp_path / "small", ("0", "2", "512K", "0-3"))) == (MIB // 2, 1)


@pytest.mark.parametrize(
    ("caches", "threads", "least"),
    [
        ((105 * MIB, 1), 2, 315 * MIB),
        ((32 * MIB, 12), 1, 96 * MIB),
        ((32 * MIB, 12), 96, 12 * 96 * MIB),
        ((2 * MIB, 1), 4, 64 * MIB),
        ((0, 0), 1, 64 * MIB),
    ],
)
def test_memory_is_read_beyond_what_the_caches_hold(
    caches: tuple[int, int], threads: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "last_level", lambda: caches)
    assert stream.read_bytes(threads) == least
    steps = stream._steps(x86.DEVICES["znver4"], threads)
    read = steps * threads * stream.CHAINS * 64
    assert least - threads * stream.CHAINS * 64 < read <= least
