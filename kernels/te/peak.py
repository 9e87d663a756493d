"""The machine's own multiply-add peak: what every kernel's speed is compared with.

Maths   Independent chains of acc = acc * v + v in registers, in each of which v is, too: as many
        as hide the latency of a fused multiply-add. Nothing is loaded in the loop.
Source  own.
"""

from __future__ import annotations

import numpy as np
from tvm.ir import IRModule

from kernels.reference import Array
from kernels.te.llvm.code import Code, isa_of
from kernels.te.llvm.script import parallel
from targets.target import Target

STEPS = 1 << 20
OTHERS = 4  # registers that hold no chain
TASK = """
T.evaluate(
    T.call_extern("int32", "{name}", T.address_of(y[vt, 0, 0]), T.address_of(v[vt, 0]))
)
"""


def lower(target: Target, dtype: str, threads: int) -> IRModule:
    """The function main(v, y) of arrays like `arguments`: STEPS steps in every thread."""
    name, code = _code(target, dtype)
    v, y = arguments(target, dtype, threads)
    return parallel(
        {"v": v.shape, "y": y.shape},
        dtype,
        {"vt": ("thread", threads)},
        TASK.format(name=name),
        {name: code},
    )


def arguments(target: Target, dtype: str, threads: int) -> tuple[Array, Array]:
    """v (threads, lanes) and y (threads, chains, lanes)."""
    lanes = isa_of(target).lanes(dtype)
    return (
        np.full((threads, lanes), 0.5, dtype),
        np.zeros((threads, _chains(target), lanes), dtype),
    )


def flops(target: Target, dtype: str, threads: int) -> int:
    """Operations of one call."""
    return 2 * STEPS * threads * _chains(target) * isa_of(target).lanes(dtype)


def _chains(target: Target) -> int:
    return target.cpu.vector_registers - OTHERS


def _code(target: Target, dtype: str) -> tuple[str, str]:
    """Name and code of `int (y, v)`: what all chains of a thread come to."""
    code = Code(isa_of(target), dtype)
    v = code.load_at("%v", 0)
    _, starts = code.step((), [v] * _chains(target))  # LLVM shall not see that they are the same
    before, code.lines = code.lines, []
    chains = [f"%chain{number}" for number in range(len(starts))]
    sums = [code.multiply_add(chain, v, v) for chain in chains]
    turn, code.lines = code.lines, []
    for number, value in enumerate(sums):
        code.store(value, code.behind("%y", number * code.lanes))
    phis = [("i32", "%turn", str(STEPS), "%left")]
    phis += [(code.vector, *names) for names in zip(chains, starts, sums, strict=True)]
    code.loop(phis, before=before, turn=turn, after=code.lines)
    return code.function(("ptr %y", "ptr %v"))
