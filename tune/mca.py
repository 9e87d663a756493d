"""What llvm-mca, LLVM's model of a core's pipeline, says of generated code.

It knows issue widths, ports and latencies, and neither caches nor branch prediction. Some cores
LLVM models as an older one: to LLVM 19 and 22, cortex-a76 has the pipeline of cortex-a57, which
starts one 128-bit multiply-add a cycle where the core starts two. So a share is of the model's own
peak. Of products in tile registers it knows no throughput.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

from targets.target import Target
from tune.emulator.instrument import Block
from tune.errors import SetupError
from tune.printed import first_line

FEW, MANY = 20, 60  # iterations; their difference is the steady state
SIGNIFICANT = 0.999  # of the instructions; the rest is taken to run like these

LABEL = re.compile(r"^([.\w$]+):")
TILE_PRODUCT = re.compile(r"^\s*tdp\w+\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How the assembly of a kind of machine is read.

    comment       what begins one
    branch        matches one, its target in a group
    multiply_add  matches one, of vectors or in tile registers
    product       matches what only a product of matrices has: one value times a vector of others
    independent   {sum} += what others have, in so many bits
    """

    comment: str
    branch: re.Pattern[str]
    multiply_add: re.Pattern[str]
    product: re.Pattern[str]
    independent: dict[int, str]


DIALECTS = {
    "arm64": Dialect(
        comment="//",
        branch=re.compile(r"^\s*(?:b(?:\.\w+)?|cbn?z|tbn?z)\s.*?([.\w$]+)\s*$"),
        multiply_add=re.compile(r"^\s*fml[as]\s"),
        product=re.compile(r"^\s*fml[as]\s.*\[\d\]$"),
        independent={128: "fmla v{sum}.4s, v30.4s, v31.s[0]"},
    ),
    "x86": Dialect(
        comment="#",
        branch=re.compile(r"^\s*j\w+\s+([.\w$]+)\s*$"),
        multiply_add=re.compile(r"^\s*(?:vfn?m(?:add|sub)\d+p[sd]|tdp\w+)\s"),
        product=re.compile(r"^\s*(?:vfn?m.*\{1to\d+\}|vbroadcasts\w\s+(?!.*\(%rip\)|\.LCPI)|tdp)"),
        independent={
            256: "vfmadd231ps %ymm14, %ymm15, %ymm{sum}",
            512: "vfmadd231ps %zmm30, %zmm31, %zmm{sum}",
        },
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """An innermost loop in the steady state.

    product        whether matrices are multiplied in it; else a window is summed, lane by lane
    tile_products  multiply-adds in tile registers, which the model cannot time
    cycles         of one iteration
    peak           multiply-adds that the model can start in a cycle
    """

    core: str
    product: bool
    instructions: int
    multiply_adds: int
    tile_products: int
    cycles: float
    peak: float
    code: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the model's multiply-add throughput; 1 is all of it."""
        return self.multiply_adds / (self.cycles * self.peak)


def hot_loops(assembly: str, target: Target) -> tuple[Loop, ...]:
    """The loop with the most multiply-adds among those of products, and among those of windows.

    assembly  as a built TVM module prints it
    ValueError when it has no loop with a multiply-add; SetupError without llvm-mca.
    """
    dialect = DIALECTS[target.kind]
    codes = _hottest(assembly, dialect)
    return tuple(
        Loop(
            core=target.mcpu,
            product=_count(dialect.product, code) > 0,
            instructions=len(code),
            multiply_adds=_count(dialect.multiply_add, code),
            tile_products=_count(TILE_PRODUCT, code),
            cycles=spent,
            peak=peak(target),
            code=code,
        )
        for code, spent in zip(codes, _cycles(codes, target), strict=True)
    )


def cycles(blocks: Sequence[Block], target: Target) -> float:
    """Estimated cycles of executed `blocks`, each as if it ran over and over. SetupError."""
    ranked = sorted(blocks, key=lambda block: -block.executions * len(block.code))
    total = sum(block.executions * len(block.code) for block in blocks)
    chosen: list[Block] = []
    covered = 0
    for block in ranked:
        chosen.append(block)
        covered += block.executions * len(block.code)
        if covered >= SIGNIFICANT * total:
            break
    each = _cycles(_disassembled(chosen, target), target)
    spent = sum(block.executions * one for block, one in zip(chosen, each, strict=True))
    return spent * total / covered


@cache
def peak(target: Target) -> float:
    """Multiply-adds a cycle that the model reaches when nothing else is to be done."""
    one = DIALECTS[target.kind].independent[target.cpu.vector_bits]
    # Enough to hide the latency of each, and registers are left for the factors.
    code = [one.format(sum=number) for number in range(target.cpu.vector_registers * 3 // 4)]
    (spent,) = _cycles([code], target)
    return len(code) / spent


def tool() -> str:
    """The name of the program that is asked, with its version. SetupError without one."""
    return Path(_newest("llvm-mca")).name


def _hottest(assembly: str, dialect: Dialect) -> list[tuple[str, ...]]:
    """The instructions of the innermost loops that have the most multiply-adds of their kind."""
    lines = [line.partition(dialect.comment)[0].rstrip() for line in assembly.splitlines()]
    labels = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    loops = [
        (labels[match[1]], i)
        for i, line in enumerate(lines)
        if (match := dialect.branch.match(line)) and labels.get(match[1], i) < i
    ]
    innermost = [
        (start, end)
        for start, end in loops
        if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in loops)
    ]
    bodies = [_instructions(lines[start : end + 1]) for start, end in innermost]
    sums = [body for body in bodies if _count(dialect.multiply_add, body)]
    if not sums:
        raise ValueError(
            f"the assembly has {len(bodies)} innermost loops, none with a vector multiply-add; "
            f"expected code of a convolution; see inspect_source('asm')"
        )
    products = [body for body in sums if _count(dialect.product, body)]
    windows = [body for body in sums if body not in products]
    most = partial(_count, dialect.multiply_add)
    return [max(kind, key=most) for kind in (products, windows) if kind]


def _instructions(lines: Sequence[str]) -> tuple[str, ...]:
    """Without labels and directives."""
    stripped = (line.strip() for line in lines if not LABEL.match(line))
    return tuple(line for line in stripped if line and not line.startswith("."))


def _count(pattern: re.Pattern[str], code: Sequence[str]) -> int:
    return sum(1 for line in code if pattern.match(line))


def _cycles(pieces: Sequence[Sequence[str]], target: Target) -> list[float]:
    """Cycles of one more iteration of each piece of code, when it is repeated."""
    text = "".join(
        f"# LLVM-MCA-BEGIN {i}\n" + "\n".join(code) + f"\n# LLVM-MCA-END {i}\n"
        for i, code in enumerate(pieces)
    )
    few, many = _total_cycles(text, FEW, target), _total_cycles(text, MANY, target)
    return [(many[str(i)] - few[str(i)]) / (MANY - FEW) for i in range(len(pieces))]


def _total_cycles(text: str, iterations: int, target: Target) -> dict[str, int]:
    """Of so many iterations of each region of `text`, by its name."""
    printed = _llvm(
        "llvm-mca",
        text,
        *([f"-mtriple={target.mtriple}"] if target.mtriple else []),
        f"-mcpu={target.mcpu}",
        f"-iterations={iterations}",
        "-json",
        "-instruction-info=0",
        "-resource-pressure=0",
        "-skip-unsupported-instructions=lack-sched",
    )
    regions = json.loads(printed)["CodeRegions"]
    return {region["Name"]: region["SummaryView"]["TotalCycles"] for region in regions}


def _disassembled(blocks: Sequence[Block], target: Target) -> list[list[str]]:
    """The instructions of each block."""
    text = "\n".join(
        " ".join(f"{byte:#04x}" for byte in word.to_bytes(4, "little"))
        for block in blocks
        for word in block.code
    )
    triple = f"-triple={target.mtriple}"
    printed = _llvm("llvm-mc", text, "-disassemble", triple, "-mattr=+all").splitlines()
    lines = iter([line.strip() for line in printed if line.startswith("\t") and line[1] != "."])
    return [list(islice(lines, len(block.code))) for block in blocks]


def _llvm(tool: str, text: str, *options: str) -> str:
    """What one of LLVM's tools prints for `text` on stdin."""
    command = [_newest(tool), *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        reason = first_line(done.stderr, f"status {done.returncode}")
        raise SetupError(
            f"{command[0]} cannot read this code: {reason}; expected LLVM 19 or newer; "
            f"install it, on Debian as root: apt-get install llvm-19"
        )
    return done.stdout


@cache
def _newest(tool: str) -> str:
    """The path of `tool` in its newest version on PATH. SetupError when there is none."""
    versions = {}
    for folder in os.get_exec_path():
        for path in Path(folder).glob(f"{tool}-[0-9]*"):
            versions[int(path.name.rpartition("-")[2])] = str(path)
    found = versions[max(versions)] if versions else shutil.which(tool)
    if found is None:
        raise SetupError(
            f"no {tool} on PATH; expected LLVM's tools, 19 or newer; "
            f"install them, on Debian as root: apt-get install llvm-19"
        )
    return found
