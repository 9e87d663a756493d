"""x86-64 machines with AVX2 or AVX-512. A new CPU is a new line of `DEVICES`."""

from __future__ import annotations

import ctypes
import os
import shutil
from functools import cache
from pathlib import Path

from targets.target import Limits, Target

KIB = 1024
CPUINFO = Path("/proc/cpuinfo")  # of this machine
AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
AMX = frozenset({"amx_tile", "amx_bf16"})
NO_LINKER = (
    "no C++ compiler on PATH; expected g++, c++ or clang++, which link what TVM compiles; "
    "install one, on Debian as root: apt-get install g++"
)


def _device(
    device: str,
    mcpu: str,
    features: frozenset[str],
    *,
    l1_kib: int,
    l2_kib: int,
) -> Target:
    wide = "avx512f" in features
    limits = Limits(
        vector_bits=512 if wide else 256,
        vector_registers=32 if wide else 16,
        l1_bytes=l1_kib * KIB,
        l2_bytes=l2_kib * KIB,
    )
    return Target(kind="x86", device=device, mcpu=mcpu, features=features, limits=limits)


# From the least to the most specific: a host is the last entry whose flags it has. A flag may be
# a vendor, so that two cores with the same instructions stay apart.
DEVICES = {
    target.device: target
    for target in (
        _device("x86-64-v3", "x86-64-v3", AVX2, l1_kib=32, l2_kib=256),
        _device("haswell", "haswell", AVX2 | {"GenuineIntel"}, l1_kib=32, l2_kib=256),
        _device(
            "alderlake",
            "alderlake",
            AVX2 | {"GenuineIntel", "avx_vnni", "gfni"},
            l1_kib=48,
            l2_kib=1280,
        ),
        _device("znver2", "znver2", AVX2 | {"AuthenticAMD", "rdpid"}, l1_kib=32, l2_kib=512),
        _device("znver3", "znver3", AVX2 | {"AuthenticAMD", "vaes"}, l1_kib=32, l2_kib=512),
        _device("x86-64-v4", "x86-64-v4", AVX512, l1_kib=32, l2_kib=1024),
        _device(
            "skylake-avx512", "skylake-avx512", AVX512 | {"GenuineIntel"}, l1_kib=32, l2_kib=1024
        ),
        _device(
            "icelake-server",
            "icelake-server",
            AVX512 | {"GenuineIntel", "avx512_vbmi2", "gfni"},
            l1_kib=48,
            l2_kib=1280,
        ),
        _device(
            "sapphirerapids",
            "sapphirerapids",
            AVX512 | AMX | {"GenuineIntel", "avx512_fp16"},
            l1_kib=48,
            l2_kib=2048,
        ),
        _device(
            "graniterapids",
            "graniterapids",
            AVX512 | AMX | {"GenuineIntel", "avx512_fp16", "amx_fp16"},
            l1_kib=48,
            l2_kib=2048,
        ),
        _device(
            "znver4", "znver4", AVX512 | {"AuthenticAMD", "avx512_bf16"}, l1_kib=32, l2_kib=1024
        ),
        _device(
            "znver5",
            "znver5",
            AVX512 | {"AuthenticAMD", "avx512_vp2intersect"},
            l1_kib=48,
            l2_kib=1024,
        ),
    )
}


def host(cpuinfo: Path = CPUINFO) -> Target:
    """The entry that describes this machine best, by the CPU flags the kernel reports.

    ValueError when the CPU has no AVX2, or is no x86 at all.
    """
    flags = _flags(cpuinfo)
    known = [target for target in DEVICES.values() if target.features <= flags]
    if not known:
        raise ValueError(
            f"this machine's CPU reports none of the vector units we have schedules for; "
            f"expected flags {' '.join(sorted(AVX2))}; name a machine with --device"
        )
    return known[-1]


def can_run(target: Target, cpuinfo: Path = CPUINFO) -> bool:
    """Whether code for `target` runs on this machine."""
    return instructions(target) <= _flags(cpuinfo)


def instructions(target: Target) -> frozenset[str]:
    """CPU flags without which code for `target` does not run: its features, less the vendor."""
    return target.features - {"GenuineIntel", "AuthenticAMD"}


def is_core(target: Target, cpuinfo: Path = CPUINFO) -> bool:
    """Whether `target` is the entry that describes this machine best."""
    return can_run(target, cpuinfo) and host(cpuinfo).mcpu == target.mcpu


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def linker() -> tuple[str, ...] | None:
    """The command of a C++ compiler driver that can link a shared library, or None."""
    found = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    return None if found is None else (found,)


@cache
def _grants_tiles() -> bool:
    """Whether Linux lets this process use the tile unit: arch_prctl(ARCH_REQ_XCOMP_PERM, 18)."""
    status: int = ctypes.CDLL(None).syscall(158, 0x1023, 18)
    return status == 0


def _flags(cpuinfo: Path) -> frozenset[str]:
    """CPU flags and vendor of the first processor; no tile unit where Linux does not grant it."""
    found: set[str] = set()
    if cpuinfo.exists():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "vendor_id"):
                found.update(value.split())
    if cpuinfo == CPUINFO and found >= AMX and not _grants_tiles():
        found -= AMX
    return frozenset(found)
