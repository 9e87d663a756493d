"""About how long a compiled GPU kernel takes: a model, no clock.

A launch takes a little more than the longest of seven terms (see `Prediction`), each a quantity of
the compiled kernel by a rate of the GPU, after the assumed costs of launching it and of its first
load. It is meant for comparing kernels; as a time it is a rough guess until a GPU has measured one.

Source  Little's law for what latency allows; otherwise own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from targets.target import GpuLimits
from tune.cubin import WARP, KernelFacts, Occupancy, occupancy

# Of every multiprocessor since Turing, by the programming guide: four schedulers issue an
# instruction of a warp each, and 32 banks deliver four bytes each, in a cycle.
ISSUED_PER_CYCLE = 4
L1_BYTES_PER_CYCLE = 128
# The A100 Architecture whitepaper: 5,120 bytes a cycle from L2 to 108 multiprocessors.
L2_BYTES_PER_CYCLE = 5120 / 108


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """Numbers that no paper of NVIDIA's gives, to be replaced by what a GPU measures.

    node_s            cost of a launch as a node of a CUDA graph
    memory_latency_s  from a load to its data, when that comes from memory
    l2_latency_s      the same, when it comes from L2
    overlap           of what a launch does at once: the terms' norm of this degree is its time, so
                      that infinity is perfect overlap, and 1 is none
    """

    node_s: float = 2.5e-6
    memory_latency_s: float = 0.6e-6
    l2_latency_s: float = 0.2e-6
    overlap: float = 4.0


ASSUMED = Assumptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all blocks of a launch ask for: bytes, and operations of tensor cores with padding.

    balance  what a block does on average, as a share of what the busiest one does
    """

    loaded_bytes: float
    stored_bytes: float
    tensor_flops: float
    balance: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One launch as compiled.

    shared_bytes  static and dynamic
    """

    facts: KernelFacts
    blocks: int
    threads: int
    shared_bytes: int
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds that each limit alone would take.

    memory   everything once across memory
    l2       what is loaded past L1, from L2 to the multiprocessors that have work
    l1       everything that is loaded, and stored, through a multiprocessor's own cache
    tensor   operations of the tensor cores, padding included
    fma      of the CUDA cores
    issue    all instructions through the schedulers
    latency  all rounds of loads that wait for one another, in every wave of blocks, but the first
    fill     that one, before which there is nothing to do; it comes on top
    node     the launch itself, which comes on top, too
    """

    occupancy: Occupancy
    memory_s: float
    l2_s: float
    l1_s: float
    tensor_s: float
    fma_s: float
    issue_s: float
    latency_s: float
    fill_s: float
    node_s: float
    overlap: float

    @property
    def seconds(self) -> float:
        terms, degree = self._terms().values(), self.overlap
        longest = max(terms)
        together: float = sum((term / longest) ** degree for term in terms) ** (1 / degree)
        return self.node_s + self.fill_s + longest * together

    @property
    def bound(self) -> str:
        """The term that is the longest."""
        terms = self._terms()
        return max(terms, key=lambda name: terms[name])

    def _terms(self) -> dict[str, float]:
        return {
            "memory": self.memory_s,
            "l2": self.l2_s,
            "l1": self.l1_s,
            "tensor": self.tensor_s,
            "fma": self.fma_s,
            "issue": self.issue_s,
            "latency": self.latency_s,
        }


def predict(
    launched: Launched, least_bytes: float, gpu: GpuLimits, dtype: str, assumptions: Assumptions
) -> Prediction:
    """Of one launch of a kernel that has to move at least so many bytes and computes on `dtype`.

    ValueError when not even one block of it fits on a multiprocessor.
    """
    facts, work, blocks = launched.facts, launched.work, launched.blocks
    fits = occupancy(gpu, launched.threads, facts.registers, launched.shared_bytes)
    if not fits.blocks:
        raise ValueError(
            f"{facts.name} does not fit: {launched.threads} threads, {facts.registers} registers, "
            f"{launched.shared_bytes} bytes of shared memory a block; expected less {fits.limit} "
            f"on {gpu.arch}; take smaller blocks or fewer stages"
        )
    # The multiprocessor with the most blocks is done last.
    most = ceil(blocks / gpu.sms)
    balance = work.balance * blocks / (gpu.sms * most)
    sm_cycles = gpu.clock_hz * gpu.sms * balance
    warps = blocks * ceil(launched.threads / WARP)
    issued, fmas = _executed(launched)
    asked = work.loaded_bytes + work.stored_bytes
    least = min(least_bytes, asked)
    # What goes through L1 is found there when it is asked for again.
    past_l1 = work.loaded_bytes if facts.count(*PAST_L1) else min(work.loaded_bytes, least)
    tensor_rate = gpu.tensor_f16_flops if dtype == "float16" else gpu.tensor_tf32_flops
    at_once = max(launched.shared_bytes, _loaded_at_once(facts) * launched.threads, 1)
    waves, first_s = ceil(most / fits.blocks), assumptions.memory_latency_s
    rounds = max(1.0, work.loaded_bytes / blocks / at_once)
    return Prediction(
        occupancy=fits,
        memory_s=least / gpu.memory_bytes_per_s,
        l2_s=past_l1 / (L2_BYTES_PER_CYCLE * gpu.clock_hz * min(gpu.sms, blocks)),
        l1_s=asked / (L1_BYTES_PER_CYCLE * sm_cycles),
        tensor_s=work.tensor_flops / (tensor_rate * balance) if facts.tensor else 0.0,
        fma_s=2 * WARP * warps * fmas / (gpu.fp32_flops * balance),
        issue_s=warps * issued / (ISSUED_PER_CYCLE * sm_cycles),
        latency_s=waves * (first_s + (rounds - 1) * assumptions.l2_latency_s) - first_s,
        fill_s=first_s,
        node_s=assumptions.node_s,
        overlap=assumptions.overlap,
    )


PAST_L1 = ("LDGSTS", "UTMALDG")
LOADS, STORES = ("LDG", "LDGSTS"), ("STG",)
ITEM_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
FMAS = {"FFMA": 1, "FMUL": 1, "FADD": 1, "FFMA2": 2, "FMUL2": 2, "FADD2": 2}


def _executed(launched: Launched) -> tuple[float, float]:
    """Instructions that a warp executes, and multiply-adds of a thread among them.

    The deepest loop that loads runs as often as it must to load what the blocks load, any other as
    often as it must to store what they store, and without stores once.
    """
    threads = launched.threads * launched.blocks
    issued = fmas = 0.0
    loads_left = launched.work.loaded_bytes / threads
    stores_left = launched.work.stored_bytes / threads
    loading = [depth for depth, part in enumerate(launched.facts.depths) if _bytes(part, LOADS)]
    for depth, part in enumerate(launched.facts.depths):
        loads, stores = _bytes(part, LOADS), _bytes(part, STORES)
        runs = 1.0
        if depth and loads and depth == loading[-1]:
            runs = max(1.0, loads_left / loads)
        elif depth and stores:
            runs = max(1.0, stores_left / stores)
        loads_left -= runs * loads
        stores_left -= runs * stores
        issued += runs * sum(part.values())
        fmas += runs * sum(part.get(name, 0) * lanes for name, lanes in FMAS.items())
    return issued, fmas


def _loaded_at_once(facts: KernelFacts) -> float:
    """Bytes that a thread can ask for before it has to wait for some: they need registers."""
    return min(max(_bytes(part, LOADS) for part in facts.depths), 4 * facts.registers)


def _bytes(part: Mapping[str, int], opcodes: Sequence[str]) -> float:
    """That one thread loads or stores in instructions of these opcodes."""
    total = 0
    for name, count in part.items():
        base, *modifiers = name.split(".")
        if base in opcodes:
            total += count * next((ITEM_WIDTHS[m] for m in modifiers if m in ITEM_WIDTHS), 4)
    return total
