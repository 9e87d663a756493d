"""64-bit Arm cores under Linux. A new core is a line of `DEVICES` and its number in `PARTS`.

Source  Arm's software optimization guides and technical reference manuals; features as the Linux
        kernel lists them in /proc/cpuinfo; caches as the named board or a common one has them.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from targets.target import Limits, Target

KIB = 1024
TRIPLE = "aarch64-linux-gnu"
GLIBC = "2.28"  # the oldest that the aarch64 wheels of TVM run on, so what we link asks no more
NO_LINKER = (
    "nothing here links for aarch64; expected aarch64-linux-gnu-g++ on PATH, or the package "
    "ziglang; run: pip install -e '.[arm64]', or on Debian as root: "
    "apt-get install g++-aarch64-linux-gnu"
)

V8 = frozenset({"asimd", "crc32"})
V8_2 = V8 | {"atomics", "asimdrdm", "lrcpc", "dcpop", "fphp", "asimdhp", "asimddp"}
V8_4 = V8_2 | {"dit", "uscat", "ilrcpc", "flagm", "jscvt", "fcma", "asimdfhm"}
SVE = V8_4 | {"sve", "i8mm", "bf16"}

# Feature -> LLVM's name for the instructions that schedules may ask for.
ATTRIBUTES = {"asimd": "+neon", "asimddp": "+dotprod", "asimdhp": "+fullfp16"}


def _device(
    device: str,
    features: frozenset[str],
    *,
    l1_kib: int,
    l2_kib: int,
    fma: int,
    mcpu: str | None = None,
) -> Target:
    # 128 bits with SVE too: schedules name lanes of a vector, which only NEON registers have.
    limits = Limits(
        vector_bits=128,
        vector_registers=32,
        l1_bytes=l1_kib * KIB,
        l2_bytes=l2_kib * KIB,
        lane_operand=True,
        half="asimdhp" in features,
        fma_per_cycle=fma,
    )
    return Target(
        kind="arm64",
        device=device,
        mcpu=mcpu or device,
        features=features,
        limits=limits,
        mtriple=TRIPLE,
        mattr=tuple(name for feature, name in ATTRIBUTES.items() if feature in features),
    )


# From the least to the most capable: a host with several kinds of core is the last entry of them.
# graviton2 and graviton3 report the numbers of neoverse-n1 and neoverse-v1, which come after them.
DEVICES = {
    target.device: target
    for target in (
        _device("cortex-a53", V8, l1_kib=32, l2_kib=128, fma=1),  # Raspberry Pi 3
        _device("cortex-a72", V8, l1_kib=32, l2_kib=256, fma=1),  # Raspberry Pi 4
        _device("cortex-a76", V8_2, l1_kib=64, l2_kib=512, fma=2),  # Raspberry Pi 5
        _device("cortex-a78", V8_2 | {"uscat"}, l1_kib=64, l2_kib=512, fma=2),
        _device("graviton2", V8_2, l1_kib=64, l2_kib=1024, fma=2, mcpu="neoverse-n1"),
        _device("neoverse-n1", V8_2, l1_kib=64, l2_kib=1024, fma=2),
        _device("cortex-x1", V8_2 | {"uscat"}, l1_kib=64, l2_kib=1024, fma=4),
        _device("neoverse-n2", SVE | {"sve2"}, l1_kib=64, l2_kib=1024, fma=2),
        _device("graviton3", SVE, l1_kib=64, l2_kib=1024, fma=4, mcpu="neoverse-v1"),
        _device("neoverse-v1", SVE, l1_kib=64, l2_kib=1024, fma=4),
        # Under Linux (Asahi, or a virtual machine); macOS would need a triple and a linker of its
        # own. Four fast cores share 12 MiB.
        _device("apple-m1", V8_4, l1_kib=128, l2_kib=3072, fma=4),
    )
}

# (CPU implementer, CPU part) of the main ID register -> LLVM's name for the core.
ARM, APPLE = 0x41, 0x61
PARTS = {
    (ARM, 0xD03): "cortex-a53",
    (ARM, 0xD08): "cortex-a72",
    (ARM, 0xD0B): "cortex-a76",
    (ARM, 0xD41): "cortex-a78",
    (ARM, 0xD44): "cortex-x1",
    (ARM, 0xD0C): "neoverse-n1",
    (ARM, 0xD49): "neoverse-n2",
    (ARM, 0xD40): "neoverse-v1",
    (APPLE, 0x022): "apple-m1",
    (APPLE, 0x023): "apple-m1",
    (APPLE, 0x024): "apple-m1",  # Pro
    (APPLE, 0x025): "apple-m1",
    (APPLE, 0x028): "apple-m1",  # Max
    (APPLE, 0x029): "apple-m1",
}


def host(cpuinfo: Path = Path("/proc/cpuinfo")) -> Target:
    """The entry of this machine's most capable core. ValueError when none is known."""
    parts = _parts(cpuinfo)
    cores = {PARTS.get(part) for part in parts}
    known = [target for target in DEVICES.values() if target.mcpu in cores]
    if not known:
        found = ", ".join(f"{implementer:#04x}/{part:#05x}" for implementer, part in parts)
        raise ValueError(
            f"this machine's core is {found or 'no 64-bit Arm'}, by implementer and part; "
            f"expected one of {', '.join(dict.fromkeys(PARTS.values()))}; "
            f"name the most similar with --device"
        )
    return known[-1]


def can_run(target: Target, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether code for `target` runs on this machine."""
    flags = {
        flag for name, value in _fields(cpuinfo) if name == "Features" for flag in value.split()
    }
    return target.features <= flags


def instructions(target: Target) -> frozenset[str]:
    """CPU features without which code for `target` does not run."""
    return target.features


def is_core(target: Target, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine has a core of the entry's kind."""
    return target.mcpu in {PARTS.get(part) for part in _parts(cpuinfo)}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def linker() -> tuple[str, ...] | None:
    """The command of a compiler driver that links for aarch64 Linux, or None."""
    native = ("g++", "c++", "clang++") if platform.machine() == "aarch64" else ()
    for name in (*native, f"{TRIPLE}-g++"):
        if found := shutil.which(name):
            return (found,)
    if find_spec("ziglang"):
        # `cc`, for objects that came from C++ need none of its libraries, which `c++` would build.
        return (sys.executable, "-m", "ziglang", "cc", "-target", f"{TRIPLE}.{GLIBC}")
    return None


def _parts(cpuinfo: Path) -> list[tuple[int, int]]:
    """Implementer and part of each kind of core, in their order."""
    fields = _fields(cpuinfo)
    implementers = [int(value, 16) for name, value in fields if name == "CPU implementer"]
    parts = [int(value, 16) for name, value in fields if name == "CPU part"]
    return list(dict.fromkeys(zip(implementers, parts, strict=False)))


def _fields(cpuinfo: Path) -> list[tuple[str, str]]:
    """Names and values of all processors."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    pairs = (line.partition(":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in pairs]
