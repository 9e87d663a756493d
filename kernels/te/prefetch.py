"""Software prefetch in a schedule, which TensorIR has no primitive for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

READ, KEEP_IN_L2, DATA = (tirx.const(number, "int32") for number in (0, 2, 1))


def prefetch(
    schedule: Schedule, loop: LoopRV, buffer: str, count: int, line: Callable[[Any], Any]
) -> None:
    """At the start of each turn of `loop`, ask for `count` cache lines of an argument.

    buffer  name of the argument
    line    from 0 <= i < count to the indices of an element of the i-th line; may lie behind the
            buffer's end: a prefetch reads nothing and cannot fault

    Not for a loop that accumulates: for all that LLVM knows a prefetch may touch the accumulators,
    and they would leave the registers at every turn. Call it last: it edits the loop as it stands,
    and primitives do not expect what it adds.
    """
    stmt = schedule.get(loop)
    argument = next(p for p in schedule.mod["main"].params if p.name == buffer)
    i = tirx.Var("line", "int32")
    address = tirx.call_intrin("handle", "tirx.address_of", argument[line(i)])
    request = tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, READ, KEEP_IN_L2, DATA)
    requests = tirx.For(i, 0, count, tirx.ForKind.SERIAL, tirx.Evaluate(request))
    body = tirx.stmt_seq(requests, stmt.body)
    edited = tirx.For(stmt.loop_var, stmt.min, stmt.extent, stmt.kind, body, None, stmt.annotations)
    schedule.state.replace(schedule.get_sref(loop), edited)
