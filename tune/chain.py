"""How long one block would take that has a multiprocessor to itself: its code, walked in order.

A GPU starts a warp's instructions in the order of the code, and the first one that needs what has
not arrived yet waits, as do all behind it. Walking the code once, with a latency for each kind of
instruction, therefore finds what no count of instructions tells: how many loads are under way
together, which wait for one another, and how much of a pipeline is in vain. All warps of a block
are taken to be at the same place.

Source  latencies of arithmetic and shared memory as microbenchmarks of Hopper find them, rounded;
        what a load takes is the model's affair, so that a walk tells rounds of loads apart.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from tune.sass import Instruction, nesting

WARP, WARPS_OF_GROUP = 32, 4  # those that one HGMMA belongs to
SCHEDULERS = 4
# In cycles, from an instruction to one that needs its result.
ARITHMETIC = 5
LATENCY = {
    **{"LDS": 30, "LDSM": 33, "LDC": 40, "S2R": 20, "S2UR": 20, "R2UR": 8, "ULDC": 6},
    **{"SHFL": 25, "MUFU": 20, "I2F": 14, "F2I": 14, "MOVM": 20, "HMMA": 33},
}
BARRIER, GROUP_DONE = 25, 30
HMMA_CYCLES = 8  # of a scheduler's tensor core
HGMMA_FLOPS_PER_CYCLE = 4096  # of a multiprocessor
L1_BYTES_PER_CYCLE = 128
HMMA_FLOPS = {"16816": 4096, "1688": 2048, "884": 512}
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}

# Of a loop with more turns than these the others are taken to last as the later ones of these do:
# of a pipeline with 2, 3 or 4 stages, each of so many turns waits.
WALKED_TURNS, LATER_TURNS = 16, 12
# The two latencies of a load whose difference tells rounds, and an end to walks that find none.
FAST, SLOW, MOST_STEPS = 400.0, 1000.0, 100_000

NAMES = re.compile(r"\b(?:UR\d+|R\d+|UP\d|P\d)\b")
PENDING = re.compile(r"SB0, (0x[0-9a-f]+)")
SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Of one block alone.

    rounds  of global loads that the block waits for, one after the other
    cycles  that it takes beside these
    turns   how often a program executes what stands so deep in loops, by depth
    """

    rounds: float
    cycles: float
    turns: tuple[float, ...]


def chain(
    code: Sequence[Instruction],
    threads: int,
    *,
    loaded_bytes: float,
    stored_bytes: float,
    tensor_flops: float,
) -> Chain:
    """Of a block with so many threads that asks for so much."""
    depths, warps = nesting(code), ceil(threads / WARP)
    runs = _turns(code, depths, warps, loaded_bytes / threads, stored_bytes / threads, tensor_flops)
    fast, slow = (_Walk(code, depths, runs, warps, latency).cycles() for latency in (FAST, SLOW))
    rounds = (slow - fast) / (SLOW - FAST)
    return Chain(rounds=rounds, cycles=fast - rounds * FAST, turns=runs)


def _turns(
    code: Sequence[Instruction],
    depths: Sequence[int],
    warps: int,
    loaded: float,
    stored: float,
    tensor_flops: float,
) -> tuple[float, ...]:
    """Runs of each depth: as many as it takes to multiply, else to load, what a block does.

    loaded, stored  bytes of a thread
    """
    flops, loads, stores = (defaultdict[int, float](float) for _ in range(3))
    for one, depth in zip(code, depths, strict=True):
        base = _base(one)
        flops[depth] += _flops(one.opcode, warps)
        loads[depth] += _width(one.opcode) * (base in ("LDG", "LDGSTS"))
        stores[depth] += _width(one.opcode) * (base == "STG")
    deepest = max(depths, default=0)
    runs = [1.0] * (deepest + 1)
    main = next((depth for depth in range(deepest, 0, -1) if flops[depth]), 0)
    needed, known = flops, tensor_flops
    if not main or not tensor_flops:
        main = next((depth for depth in range(deepest, 0, -1) if loads[depth]), 0)
        needed, known = loads, loaded
    for depth in range(1, main):
        runs[depth] = max(1.0, stored / stores[depth]) if stores[depth] else 1.0
    if main:
        before = sum(runs[depth] * needed[depth] for depth in range(main))
        runs[main] = max(runs[main - 1], (known - before) / needed[main])
    for depth in range(main + 1, deepest + 1):
        # A loop within: once a turn, or over the rows of a window, what else it loads.
        left = (loaded - loads[0]) / runs[main] - loads[depth - 1]
        runs[depth] = runs[depth - 1] * max(1.0, left / loads[depth] if loads[depth] else 1.0)
    return tuple(runs)


@dataclass(slots=True)
class _Walk:
    """One walk through the code. `latency` of a load, in cycles."""

    code: Sequence[Instruction]
    depths: Sequence[int]
    runs: Sequence[float]
    warps: int
    latency: float

    now: float = 0.0
    ready: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    memory_free: float = 0.0  # when the load and store unit takes the next access
    tensor_free: float = 0.0
    copying: float = 0.0  # until when what was copied since the last group was closed has come
    groups: list[float] = field(default_factory=list)

    def cycles(self) -> float:
        """Until the end, at the first exit that nothing guards."""
        addresses = [one.address for one in self.code]
        per_instruction = max(1.0, self.warps / SCHEDULERS)
        turn: Counter[int] = Counter()
        came: dict[int, float] = {}
        place = 0
        for _ in range(MOST_STEPS):
            if place >= len(self.code):
                break
            one, names = self.code[place], NAMES.findall(self.code[place].operands)
            needs = max((self.ready[name] for name in names), default=0.0)
            self.now = max(self.now + per_instruction, needs)
            if one.target is None:
                if one.ends:
                    break
                self._execute(one, names, per_instruction)
                place += 1
                continue
            go = one.ends
            if one.target < one.address:
                depth = self.depths[place]
                turns = max(1.0, self.runs[depth] / self.runs[depth - 1]) if depth else 1.0
                turn[place] += 1
                if turn[place] == WALKED_TURNS - LATER_TURNS:
                    came[place] = self.now
                go = turn[place] < min(turns, WALKED_TURNS) - 1e-6
                if not go and turns > turn[place]:
                    each = (self.now - came[place]) / LATER_TURNS if place in came else 0.0
                    self.now += (turns - turn[place]) * each  # of those that are not walked
                if not go:
                    turn.pop(place)
                    came.pop(place, None)
            place = bisect_left(addresses, one.target) if go else place + 1
        return self.now

    def _execute(self, one: Instruction, names: Sequence[str], per_instruction: float) -> None:
        base = _base(one)
        if base in ("LDG", "LDGSTS", "LDS", "LDSM", "STG", "STS", "STSM"):
            width = 16 if base in ("LDSM", "STSM") else _width(one.opcode)
            took = self.warps * max(1.0, width * WARP / L1_BYTES_PER_CYCLE)
            self.memory_free = max(self.now, self.memory_free) + took
            if base == "LDGSTS":
                self.copying = max(self.copying, self.memory_free + self.latency)
            elif base.startswith("LD") and names:
                arrives = self.memory_free + LATENCY.get(base, self.latency)
                for name in _registers(names[0], width):
                    self.ready[name] = arrives
        elif base == "LDGDEPBAR":
            self.groups.append(self.copying)
            self.copying = 0.0
        elif base == "DEPBAR":
            allowed = PENDING.search(one.operands)
            while len(self.groups) > (int(allowed[1], 16) if allowed else 0):
                self.now = max(self.now, self.groups.pop(0))
        elif base == "BAR":
            self.now = max(self.now, self.memory_free) + BARRIER
        elif base == "HMMA" and names:
            self.tensor_free = max(self.now, self.tensor_free) + HMMA_CYCLES * per_instruction
            self.ready[names[0]] = self.tensor_free + LATENCY[base]
        elif base == "HGMMA":
            took = _flops(one.opcode, self.warps) / HGMMA_FLOPS_PER_CYCLE
            self.tensor_free = max(self.now, self.tensor_free) + took
        elif one.opcode.startswith("WARPGROUP.DEPBAR"):
            self.now = max(self.now, self.tensor_free + GROUP_DONE)
        elif names:
            self.ready[names[0]] = self.now + LATENCY.get(base, ARITHMETIC)


def _base(one: Instruction) -> str:
    return one.opcode.partition(".")[0]


def _width(opcode: str) -> int:
    """Bytes that one thread loads or stores."""
    return next((WIDTHS[each] for each in opcode.split(".") if each in WIDTHS), 4)


def _registers(first: str, width: int) -> tuple[str, ...]:
    """Those that a load of so many bytes fills."""
    if not first.startswith("R"):
        return (first,)
    return tuple(f"R{int(first[1:]) + more}" for more in range(max(1, width // 4)))


def _flops(opcode: str, warps: int) -> float:
    """Of a block's warps together in one instruction for tensor cores."""
    if opcode.startswith("HMMA"):
        shapes = [HMMA_FLOPS[each] for each in opcode.split(".") if each in HMMA_FLOPS]
        return warps * (shapes or [4096])[0]
    if opcode.startswith("HGMMA") and (shape := SHAPE.search(opcode)):
        return warps / WARPS_OF_GROUP * 2 * int(shape[1]) * int(shape[2]) * int(shape[3])
    return 0.0
