"""What a compiled GPU kernel needs, read from its cubin, and how many fit on a multiprocessor."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from targets.target import GpuLimits
from tune import sass
from tune.errors import SetupError
from tune.printed import last_line

TOOL = "cuobjdump"
CUDA_MACHINE = 190  # in the header of an ELF file
RESERVED_FROM = 90  # from sm_90 on, static shared memory is counted with what the driver reserves
RESERVED_BYTES = 1024

TENSOR = ("HMMA", "HGMMA", "UTCHMMA")
GLOBAL_LOADS = ("LDG", "LDGSTS", "UTMALDG")

# Granularities of allocation by NVIDIA's cuda_occupancy.h, which the tests compare with.
WARP = 32
REGISTER_UNIT = 256  # registers of a warp
PARTITIONS = 4  # of a multiprocessor's registers
SHARED_UNIT_BYTES = {7: 256}  # by major version
SHARED_UNIT_BYTES_SINCE = 128
BLOCKS_PER_SM = {
    "sm_75": 16,
    "sm_80": 32,
    "sm_86": 16,
    "sm_89": 24,
    "sm_90": 32,
    "sm_100": 32,
    "sm_120": 24,
}

FUNCTION = re.compile(r"^\s*Function\s*:?\s*(\S+?)\s*:?\s*$")
USAGE = re.compile(r"(REG|STACK|SHARED|LOCAL):(\d+)")
ARCH = re.compile(r"code for sm_(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """One kernel as compiled.

    registers     of a thread
    local_bytes   of memory of a thread's own, which holds what does not fit into registers
    shared_bytes  static shared memory of a block; what the launch asks for comes on top
    depths        instructions by name, outside of loops, inside one, inside two, and so on
    code          all of them, in their order
    """

    name: str
    registers: int
    local_bytes: int
    shared_bytes: int
    depths: tuple[Mapping[str, int], ...]
    code: tuple[sass.Instruction, ...] = ()

    @property
    def mix(self) -> Counter[str]:
        """All its instructions by name, such as LDG.E.128, HGMMA, FFMA."""
        total: Counter[str] = Counter()
        for part in self.depths:
            total.update(part)
        return total

    def count(self, *opcodes: str) -> int:
        """Instructions of these opcodes, whatever their modifiers."""
        return sum(n for name, n in self.mix.items() if name.partition(".")[0] in opcodes)

    @property
    def tensor(self) -> int:
        """Instructions for tensor cores."""
        return self.count(*TENSOR)

    @property
    def spills(self) -> int:
        """Loads and stores of local memory."""
        return self.count("LDL", "STL")

    @property
    def wide_loads(self) -> int:
        """Loads of global memory, 16 bytes a thread or whole tiles."""
        mix = self.mix
        return mix["LDG.E.128"] + mix["LDGSTS.E.128"] + self.count("UTMALDG")


@dataclass(frozen=True, slots=True, kw_only=True)
class CubinFacts:
    """What is in a cubin. `arch` is what it was compiled for, such as sm_90."""

    arch: str
    kernels: tuple[KernelFacts, ...]

    def kernel(self, name: str) -> KernelFacts:
        """The kernel of that name. ValueError when there is none."""
        for one in self.kernels:
            if one.name == name:
                return one
        raise ValueError(
            f"the cubin has no kernel {name!r}; expected one of "
            f"{', '.join(one.name for one in self.kernels)}; ask for one that it has"
        )


class Occupancy(NamedTuple):
    """How many blocks fit on a multiprocessor at once, and the share of its threads they are.

    limit  what allows no more: threads, blocks, registers or shared
    """

    blocks: int
    share: float
    limit: str


def inspect(cubin: bytes) -> CubinFacts:
    """What the kernels in `cubin` need and consist of.

    ValueError when it is none; SetupError without NVIDIA's disassembler.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool(), "--dump-resource-usage", "--dump-sass", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    arch = ARCH.search(done.stdout)
    if done.returncode or arch is None:
        said = last_line(done.stderr, "no code in it")
        raise ValueError(
            f"{len(cubin)} bytes are no cubin that {TOOL} reads: {said}; expected one as "
            f"ptxas writes it; compile the kernel for a GPU"
        )
    usage, code = _sections(done.stdout)
    reserved = RESERVED_BYTES if int(arch[1]) >= RESERVED_FROM else 0
    parsed = {name: sass.parse(code[name]) for name in usage}
    kernels = tuple(
        KernelFacts(
            name=name,
            registers=used["REG"],
            local_bytes=used["STACK"] + used["LOCAL"],
            shared_bytes=max(0, used["SHARED"] - reserved),
            depths=sass.depths(parsed[name]),
            code=parsed[name],
        )
        for name, used in usage.items()
    )
    return CubinFacts(arch=f"sm_{arch[1]}", kernels=kernels)


def cubins(library: bytes) -> Iterator[bytes]:
    """Every cubin that lies, uncompressed, somewhere in a file such as a shared library."""
    start = library.find(b"\x7fELF")
    while start >= 0:
        header = library[start : start + 64]
        size = 4
        if len(header) == 64 and header[4] == 2:  # 64 bits
            (machine,) = struct.unpack_from("<H", header, 18)
            programs, sections = struct.unpack_from("<QQ", header, 32)
            program_size, program_count, section_size, section_count = struct.unpack_from(
                "<4H", header, 54
            )
            if machine == CUDA_MACHINE:
                size = max(
                    programs + program_size * program_count,
                    sections + section_size * section_count,
                )
                yield library[start : start + size]
        start = library.find(b"\x7fELF", start + size)


def occupancy(gpu: GpuLimits, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of a kernel with so many threads a block, registers a thread and shared bytes a block.

    No blocks when a single one does not fit. `shared_bytes` is static and dynamic together, without
    what the driver reserves.
    """
    if (
        not 0 < threads <= gpu.threads_per_block
        or registers > gpu.registers_per_thread
        or shared_bytes > gpu.shared_per_block_bytes
    ):
        limit = "threads" if not 0 < threads <= gpu.threads_per_block else "registers"
        return Occupancy(0, 0.0, "shared" if shared_bytes > gpu.shared_per_block_bytes else limit)
    warps = -(-threads // WARP)
    registers_of_warp = _up(registers * WARP, REGISTER_UNIT)
    warps_per_partition = gpu.registers_per_sm // PARTITIONS // max(1, registers_of_warp)
    # The driver keeps some of a multiprocessor's shared memory for each block.
    reserved = gpu.shared_per_sm_bytes - gpu.shared_per_block_bytes
    unit = SHARED_UNIT_BYTES.get(_major(gpu.arch), SHARED_UNIT_BYTES_SINCE)
    shared = _up(shared_bytes + reserved, unit)
    limits = {
        "threads": gpu.threads_per_sm // WARP // warps,
        "registers": warps_per_partition * PARTITIONS // warps,
        "shared": gpu.shared_per_sm_bytes // shared if shared else BLOCKS_PER_SM[gpu.arch],
        "blocks": BLOCKS_PER_SM[gpu.arch],
    }
    # A launch is refused unless all partitions could give the registers at once.
    if registers_of_warp * _up(warps, PARTITIONS) > gpu.registers_per_sm:
        limits["registers"] = 0
    limit = min(limits, key=lambda each: limits[each])
    blocks = limits[limit]
    return Occupancy(blocks, blocks * warps * WARP / gpu.threads_per_sm, limit)


@cache
def tool() -> str:
    """The path of NVIDIA's cuobjdump: of the CUDA toolkit or of Triton's wheel. SetupError."""
    if found := shutil.which(TOOL):
        return found
    folders = (("triton", "backends/nvidia/bin"), ("nvidia", "cu13/bin"))
    for package, folder in folders:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(root) / folder / TOOL).exists():
                return str(path)
    raise SetupError(
        f"no {TOOL} on PATH nor in the package triton; expected NVIDIA's disassembler; "
        f"run: pip install -e '.[cuda]', or put a CUDA toolkit's bin folder on PATH"
    )


def _sections(printed: str) -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
    """Resources and lines of code of each function."""
    usage: dict[str, dict[str, int]] = {}
    code: dict[str, list[str]] = {}
    name = ""
    for line in printed.splitlines():
        if match := FUNCTION.match(line):
            name = match[1]
        elif found := USAGE.findall(line):
            usage[name] = {key: int(value) for key, value in found}
        else:
            code.setdefault(name, []).append(line)
    return usage, code


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _major(arch: str) -> int:
    return int(arch.removeprefix("sm_")[:-1])
