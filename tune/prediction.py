"""About how long a compiled GPU kernel takes: a model, no clock.

A launch costs its node, and then a little more than the longest of seven terms (see `Prediction`):
what its blocks wait for one after the other, by walking their code, and six quantities of all
blocks by rates of the GPU. Latencies are those that make it agree with an H200.

Source  Little's law for what latency allows; otherwise own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from targets.target import GpuLimits
from tune.chain import Chain
from tune.cubin import WARP, KernelFacts, Occupancy, occupancy

# Of every multiprocessor since Turing, by the programming guide: four schedulers issue an
# instruction of a warp each, and 32 banks deliver four bytes each, in a cycle.
ISSUED_PER_CYCLE = 4
L1_BYTES_PER_CYCLE = 128
# The A100 Architecture whitepaper: 5,120 bytes a cycle from L2 to 108 multiprocessors.
L2_BYTES_PER_CYCLE = 5120 / 108


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Numbers that no paper of NVIDIA's gives, of an H200 on 2026-11-27; taken for every GPU.

    The first two are its ceilings, by `tune harvest`. The others make the model agree with
    `logs/cuda/h200.jsonl` and with profiles of the network at batch 1 and 256.

    node_s            cost of an empty launch as a node of a CUDA graph
    memory_share      of the datasheet's bytes a second, that a copy reaches
    memory_latency_s  a round of loads, of which some come from memory
    l2_latency_s      the same, when all come from L2 or have been asked for by a neighbour
    overlap           of what a launch does at once: the terms' norm of this degree is its time, so
                      that infinity is perfect overlap, and 1 is none
    """

    node_s: float = 0.88e-6
    memory_share: float = 0.87
    memory_latency_s: float = 0.6e-6
    l2_latency_s: float = 0.28e-6
    overlap: float = 1.75


MEASURED = Measured()


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
    chain: Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Seconds that each limit alone would take.

    memory   everything once across memory
    l2       what is loaded past L1, from L2 to the multiprocessors that have work
    l1       everything that is loaded, and stored, through a multiprocessor's own cache
    tensor   operations of the tensor cores, padding included
    fma      of the CUDA cores
    issue    all instructions through the schedulers
    chain    what a block does by itself, rounds of loads above all, in every wave of blocks
    node     the launch itself, which comes on top
    """

    occupancy: Occupancy
    memory_s: float
    l2_s: float
    l1_s: float
    tensor_s: float
    fma_s: float
    issue_s: float
    chain_s: float
    node_s: float
    overlap: float

    @property
    def seconds(self) -> float:
        terms, degree = self._terms().values(), self.overlap
        longest = max(terms)
        together: float = sum((term / longest) ** degree for term in terms) ** (1 / degree)
        return self.node_s + longest * together

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
            "chain": self.chain_s,
        }


def predict(
    launched: Launched,
    least_bytes: float,
    gpu: GpuLimits,
    dtype: str,
    measured: Measured,
    *,
    cold: bool = False,
) -> Prediction:
    """Of one launch of a kernel that has to move at least so many bytes and computes on `dtype`.

    cold  whether its operands lie in memory, as in a trial, rather than in L2, as in a network
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
    issued, fmas = _executed(facts, launched.chain)
    asked = work.loaded_bytes + work.stored_bytes
    least = min(least_bytes, asked)
    # What goes through L1 is found there when it is asked for again.
    past_l1 = work.loaded_bytes if facts.count(*PAST_L1) else min(work.loaded_bytes, least)
    tensor_rate = gpu.tensor_f16_flops if dtype == "float16" else gpu.tensor_tf32_flops
    return Prediction(
        occupancy=fits,
        memory_s=least / (measured.memory_share * gpu.memory_bytes_per_s),
        l2_s=past_l1 / (L2_BYTES_PER_CYCLE * gpu.clock_hz * min(gpu.sms, blocks)),
        l1_s=asked / (L1_BYTES_PER_CYCLE * sm_cycles),
        tensor_s=work.tensor_flops / (tensor_rate * balance) if facts.tensor else 0.0,
        fma_s=2 * WARP * warps * fmas / (gpu.fp32_flops * balance),
        issue_s=warps * issued / (ISSUED_PER_CYCLE * sm_cycles),
        chain_s=_waves(most, fits.blocks) * _alone_s(launched.chain, gpu, measured, cold),
        node_s=measured.node_s,
        overlap=measured.overlap,
    )


PAST_L1 = ("LDGSTS", "UTMALDG")
MANY_WAVES = 8
FMAS = {"FFMA": 1, "FMUL": 1, "FADD": 1, "FFMA2": 2, "FMUL2": 2, "FADD2": 2}


def _executed(facts: KernelFacts, chain: Chain) -> tuple[float, float]:
    """Instructions that a warp executes, and multiply-adds of a thread among them."""
    issued = fmas = 0.0
    for part, runs in zip(facts.depths, chain.turns, strict=True):
        issued += runs * sum(part.values())
        fmas += runs * sum(part.get(name, 0) * lanes for name, lanes in FMAS.items())
    return issued, fmas


def _waves(blocks: int, at_once: int) -> float:
    """Of blocks on one multiprocessor; after many waves their ends lie anywhere in between."""
    return blocks / at_once if blocks >= MANY_WAVES * at_once else ceil(blocks / at_once)


def _alone_s(chain: Chain, gpu: GpuLimits, measured: Measured, cold: bool) -> float:
    """Of one block. In each turn of its loop one round of loads asks for what is new."""
    new = min(chain.rounds, max(chain.turns) + 1) if cold else 0.0
    waited = new * measured.memory_latency_s + (chain.rounds - new) * measured.l2_latency_s
    return waited + chain.cycles / gpu.clock_hz
