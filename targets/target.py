"""What a machine is, as data: the ground floor. Nothing here measures, compiles or imports ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a CPU's schedules are sized by.

    vector_bits       width of one vector register
    vector_registers  number of architectural vector registers
    l1_bytes          first-level data cache of one core
    l2_bytes          second-level cache of one core; of a shared one, a core's share
    lane_operand      whether a multiply-add can take one lane of a register as a factor for all
    half              whether vectors of float16 can be multiplied and added
    fma_per_cycle     vector multiply-adds that one core starts a cycle, where we know it
    """

    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    lane_operand: bool = False
    half: bool = False
    fma_per_cycle: int | None = None

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bits // DTYPE_BITS[dtype]

    def computes(self, dtype: str) -> bool:
        """Whether vectors of `dtype` can be multiplied and added."""
        return dtype == "float32" or (dtype == "float16" and self.half)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLimits:
    """What a GPU's schedules are sized by, and what it can do at most by its datasheet.

    arch                    of its code, such as sm_90
    shared_per_block_bytes  the most that a kernel can ask for
    fp32_flops              FLOP/s outside tensor cores; the others in them, of dense matrices
    """

    arch: str
    sms: int
    threads_per_sm: int
    threads_per_block: int = 1024
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    shared_per_sm_bytes: int
    shared_per_block_bytes: int
    l2_bytes: int
    memory_bytes_per_s: float
    clock_hz: float
    fp32_flops: float
    tensor_f16_flops: float
    tensor_tf32_flops: float

    @property
    def capability(self) -> int:
        """The architecture as a number that compares: 90 for sm_90."""
        return int(self.arch.removeprefix("sm_"))

    def peak_flops(self, dtype: str) -> float:
        """Of tensor cores in float16; in float32 of those in TF32, where there are any."""
        if dtype == "float16":
            return self.tensor_f16_flops
        return max(self.tensor_tf32_flops, self.fp32_flops)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of machine (`x86`), a known device of that kind, and its facts.

    device    name of the entry in the kind's table; names the log file
    mcpu      LLVM's name for the core, or the architecture of a GPU
    features  CPU flags that the device must have, as the operating system spells them
    mtriple   what code is made for, as LLVM spells it; None is this machine's own
    mattr     instruction sets to use beyond those that `mcpu` implies, as LLVM spells them
    """

    kind: str
    device: str
    mcpu: str
    features: frozenset[str]
    limits: Limits | GpuLimits
    mtriple: str | None = None
    mattr: tuple[str, ...] = ()

    @property
    def cpu(self) -> Limits:
        """The limits of a CPU. TypeError for a GPU."""
        if not isinstance(self.limits, Limits):
            raise TypeError(f"{self.device} is a GPU; expected a CPU")
        return self.limits

    @property
    def gpu(self) -> GpuLimits:
        """The limits of a GPU. TypeError for a CPU."""
        if not isinstance(self.limits, GpuLimits):
            raise TypeError(f"{self.device} is a CPU; expected a GPU")
        return self.limits

    def tvm(self) -> Any:
        """The same machine as a `tvm.target.Target`."""
        from tvm.target import Target as TvmTarget

        if isinstance(self.limits, GpuLimits):
            return TvmTarget(
                {
                    "kind": "cuda",
                    "arch": self.limits.arch,
                    "max_threads_per_block": self.limits.threads_per_block,
                    "max_shared_memory_per_block": self.limits.shared_per_block_bytes,
                },
                host={"kind": "llvm"},
            )
        given = {"mtriple": self.mtriple, "mattr": list(self.mattr)}
        return TvmTarget(
            {"kind": "llvm", "mcpu": self.mcpu} | {key: val for key, val in given.items() if val}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server listens."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not self.host or not 0 < self.port < 1 << 16:
            raise ValueError(
                f"address {str(self)!r} names no place; expected a host and a port from 1 to "
                f"65535; write it as host:port"
            )

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """`host:port`, an IPv6 host in brackets: `[::1]:9090`. ValueError otherwise."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not (host and colon and port.isdecimal() and port.isascii()) or (
            ":" in host and not bracketed
        ):
            raise ValueError(
                f"address {text!r} is not understood; expected host:port, such as "
                f"raspberrypi.local:9090; put an IPv6 address in brackets: [fe80::1]:9090"
            )
        return cls(host=host[1:-1] if bracketed else host, port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


DTYPE_BITS = {"float32": 32, "float16": 16}
