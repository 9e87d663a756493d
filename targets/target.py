"""What a machine is, as data: the ground floor. Nothing here measures, compiles or imports ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What schedules are sized by.

    vector_bits       width of one vector register
    vector_registers  number of architectural vector registers
    l1_bytes          first-level data cache of one core
    l2_bytes          second-level cache of one core; of a shared one, a core's share
    lane_operand      whether a multiply-add can take one lane of a register as a factor for all
    fma_per_cycle     vector multiply-adds that one core starts a cycle, where we know it
    """

    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    lane_operand: bool = False
    fma_per_cycle: int | None = None

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bits // DTYPE_BITS[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of machine (`x86`), a known device of that kind, and its facts.

    device    name of the entry in the kind's table; names the log file
    mcpu      LLVM's name for the core
    features  CPU flags that the device must have, as the operating system spells them
    mtriple   what code is made for, as LLVM spells it; None is this machine's own
    mattr     instruction sets to use beyond those that `mcpu` implies, as LLVM spells them
    """

    kind: str
    device: str
    mcpu: str
    features: frozenset[str]
    limits: Limits
    mtriple: str | None = None
    mattr: tuple[str, ...] = ()

    def tvm(self) -> Any:
        """The same machine as a `tvm.target.Target`."""
        from tvm.target import Target as TvmTarget

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
