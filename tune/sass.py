"""What a disassembled kernel consists of: its instructions, and how deep in loops each stands."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

# /*0120*/              @!P0 LDG.E.128 R4, desc[UR4][R12.64] ;
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.x]*)([^;]*);")
ADDRESS = re.compile(r"0x([0-9a-f]+)\s*$")

# Modifiers that tell what we want to know; the others are left out of an opcode's name.
WIDTHS = frozenset({"E", "U8", "S8", "U16", "S16", "64", "128", "256"})
TYPES = frozenset({"TF32", "BF16", "F16"})
MODIFIERS = {
    **dict.fromkeys(("LDG", "STG", "LDS", "STS", "LDL", "STL", "LDGSTS", "LD", "ST"), WIDTHS),
    **dict.fromkeys(("HMMA", "HGMMA"), TYPES),
}
# A loop without any of these only waits.
WORK = ("LD", "ST", "UTMA", "HMMA", "HGMMA", "UTC", "FFMA", "FMUL", "FADD", "HFMA2", "IMAD.WIDE")
ENDS = ("EXIT", "RET", "BRX", "JMP", "JMX", "KILL", "BPT")


class Instruction(NamedTuple):
    """One of a kernel; `target` is where it may go instead of on, `ends` whether it must.

    operands  as printed, behind the predicate that guards it, if one does
    """

    address: int
    opcode: str
    target: int | None
    ends: bool
    operands: str = ""


def parse(lines: Iterable[str]) -> tuple[Instruction, ...]:
    """The instructions that ever execute something, in their order."""
    found = []
    for line in lines:
        match = LINE.match(line)
        if match is None or match[2] == "!PT" or match[3] == "NOP":
            continue
        address, opcode, operands = int(match[1], 16), match[3], match[4].strip()
        conditional = match[2] is not None or "," in operands
        branch = opcode.partition(".")[0] == "BRA"
        where = ADDRESS.search(operands) if branch else None
        target = int(where[1], 16) if where else None
        if target == address:  # behind the end, where nothing comes by
            continue
        ends = not conditional and (branch or opcode.startswith(ENDS))
        found.append(Instruction(address, opcode, target, ends, f"{operands}, {match[2] or ''}"))
    return tuple(found)


def depths(code: Sequence[Instruction]) -> tuple[Counter[str], ...]:
    """Instructions by name, outside of loops, inside one, inside two nested ones, and so on."""
    found: list[Counter[str]] = [Counter()]
    for one, depth in zip(code, nesting(code), strict=True):
        found.extend(Counter() for _ in range(depth + 1 - len(found)))
        found[depth][name(one.opcode)] += 1
    return tuple(found)


def nesting(code: Sequence[Instruction]) -> tuple[int, ...]:
    """Of each instruction, how many loops it stands in, but those that only wait."""
    blocks = _blocks(code)
    working = [
        loop
        for loop in _loops(_successors(blocks))
        if any(one.opcode.startswith(WORK) for number in loop for one in blocks[number])
    ]
    return tuple(
        sum(number in loop for loop in working)
        for number, block in enumerate(blocks)
        for _ in block
    )


def name(opcode: str) -> str:
    """An opcode with those of its modifiers that matter: LDG.E.128, HMMA.TF32, FFMA."""
    base, *modifiers = opcode.split(".")
    kept = MODIFIERS.get(base, frozenset())
    return ".".join((base, *(each for each in modifiers if each in kept)))


def _blocks(code: Sequence[Instruction]) -> list[Sequence[Instruction]]:
    """Stretches that are entered at their first instruction only and left at their last only."""
    place = {one.address: number for number, one in enumerate(code)}
    # A branch may lead to an instruction that was left out: then to the next one that was not.
    starts = {0, len(code)}
    for number, one in enumerate(code):
        if one.target is not None:
            starts.add(place.get(one.target, _next(code, one.target)))
        if one.target is not None or one.ends:
            starts.add(number + 1)
    return [code[start:end] for start, end in pairwise(sorted(starts)) if start < end]


def _next(code: Sequence[Instruction], address: int) -> int:
    """The number of the first instruction from `address` on."""
    return next((i for i, one in enumerate(code) if one.address >= address), len(code))


def _successors(blocks: Sequence[Sequence[Instruction]]) -> list[set[int]]:
    """Of each block, those that may run next."""
    first = [block[0].address for block in blocks]
    successors: list[set[int]] = []
    for number, block in enumerate(blocks):
        last, after = block[-1], set()
        if not last.ends and number + 1 < len(blocks):
            after.add(number + 1)
        if last.target is not None:
            later = [i for i, address in enumerate(first) if address >= last.target]
            after.update(later[:1])
        successors.append(after)
    return successors


def _loops(successors: Sequence[set[int]]) -> list[set[int]]:
    """The blocks of each natural loop.

    An edge closes a loop only when each way to its tail leads through its head, so that code that
    was moved out of line and jumps back does not count.
    """
    predecessors: list[set[int]] = [set() for _ in successors]
    for number, after in enumerate(successors):
        for other in after:
            predecessors[other].add(number)
    through = _dominators(predecessors)
    bodies: dict[int, set[int]] = {}
    for tail, after in enumerate(successors):
        for head in after & through[tail]:
            body = bodies.setdefault(head, {head})
            waiting = [tail]
            while waiting:
                number = waiting.pop()
                if number not in body:
                    body.add(number)
                    waiting.extend(predecessors[number])
    return list(bodies.values())


def _dominators(predecessors: Sequence[set[int]]) -> list[set[int]]:
    """Of each block, those that every way from the first block to it leads through."""
    everything = set(range(len(predecessors)))
    through = [{0}, *(set(everything) for _ in predecessors[1:])]
    changed = True
    while changed:
        changed = False
        for number in range(1, len(predecessors)):
            before = [through[each] for each in predecessors[number]]
            now = {number} | (set.intersection(*before) if before else set())
            if now != through[number]:
                through[number], changed = now, True
    return through
