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
    l2_bytes          second-level cache of one core
    """

    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bits // DTYPE_BITS[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of machine (`x86`), a known device of that kind, and its facts.

    device    name of the entry in the kind's table; names the log file
    mcpu      LLVM's name for the core
    features  CPU flags that the device must have, as the operating system spells them
    """

    kind: str
    device: str
    mcpu: str
    features: frozenset[str]
    limits: Limits

    def tvm(self) -> Any:
        """The same machine as a `tvm.target.Target`."""
        from tvm.target import Target as TvmTarget

        return TvmTarget({"kind": "llvm", "mcpu": self.mcpu})


DTYPE_BITS = {"float32": 32, "float16": 16}
