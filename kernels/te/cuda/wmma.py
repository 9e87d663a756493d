"""Warp-wide matrix instructions, as the five blocks that a schedule is tensorized with.

A warp holds 16x16 tiles in fragments: of float16 in the scopes `wmma.matrix_a` and `wmma.matrix_b`,
of float32 in `wmma.accumulator`. An instruction is a pair of functions: the loops that it stands
for, which TVM compares with those of the schedule, and the call that takes their place.

TVM brings the like, but importing them takes half a minute, because the instructions of every
machine are parsed. Only these five are parsed here, on first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from textwrap import indent
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import from_source

TILE = 16
LANES = 32

FUNCTION = """\
@T.prim_func(s_tir=True)
def instruction({handles}):
{matches}
    with T.sblock("root"):
        T.reads({reads})
        T.writes({writes})
{body}
"""
MATCH = 'T.match_buffer({name}_, (16, 16), "{dtype}", align=64, offset_factor=16, scope="{scope}"'
LOOPS = """\
for i, j in T.grid(16, 16):
    with T.sblock("element"):
        vi, vj = T.axis.remap("SS", [i, j])
        {element}
"""
PRODUCT = """\
for i, j, k in T.grid(16, 16, 16):
    with T.sblock("element"):
        vi, vj, vk = T.axis.remap("SSR", [i, j, k])
        c[vi, vj] = c[vi, vj] + T.Cast("float32", a[vi, vk]) * T.Cast("float32", b[vk, vj])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Instruction:
    """buffers  name -> (dtype, scope), in the order of TVM's patterns: what is read goes first
    read     the buffers that are read; the last one is written
    loops    what it computes
    call     the instruction; name1 is the stride of a buffer's rows, `which(name)` its fragment
    """

    buffers: dict[str, tuple[str, str]]
    read: str
    loops: str
    call: str


STAGED = ("float16", "shared.dyn")
MATRIX_A, MATRIX_B = ("float16", "wmma.matrix_a"), ("float16", "wmma.matrix_b")
SUMS, SUMS_OUT = ("float32", "wmma.accumulator"), ("float32", "shared.dyn")

INSTRUCTIONS = {
    **{
        f"load_{matrix[1][-1]}": _Instruction(
            buffers={"a": STAGED, "c": matrix},
            read="a",
            loops=LOOPS.format(element="c[vi, vj] = a[vi, vj]"),
            call="T.tvm_load_matrix_sync(c.data, 16, 16, 16, {c}, "
            'a.access_ptr("r", ptr_type="float16"), a1, "row_major", dtype="void")',
        )
        for matrix in (MATRIX_A, MATRIX_B)
    },
    "fill": _Instruction(
        buffers={"c": SUMS},
        read="",
        loops=LOOPS.format(element="c[vi, vj] = T.float32(0)"),
        call='T.tvm_fill_fragment(c.data, 16, 16, 16, {c}, T.float32(0), dtype="void")',
    ),
    "multiply": _Instruction(
        buffers={"a": MATRIX_A, "b": MATRIX_B, "c": SUMS},
        read="cab",
        loops=PRODUCT,
        call='T.tvm_mma_sync(c.data, {c}, a.data, {a}, b.data, {b}, c.data, {c}, dtype="void")',
    ),
    "store": _Instruction(
        buffers={"a": SUMS, "c": SUMS_OUT},
        read="a",
        loops=LOOPS.format(element="c[vi, vj] = a[vi, vj]"),
        call="T.tvm_store_matrix_sync(a.data, 16, 16, 16, {a}, "
        'c.access_ptr("w", ptr_type="float32"), c1, "row_major", dtype="void")',
    ),
}


@cache
def instructions() -> dict[str, str]:
    """Role -> its intrinsic's name in TVM, for the roles load_a, load_b, fill, multiply, store."""
    for role, instruction in INSTRUCTIONS.items():
        pair = (_loops(instruction), _call(instruction))
        TensorIntrin.register(f"septune.wmma.{role}", *pair, override=True)
    return {role: f"septune.wmma.{role}" for role in INSTRUCTIONS}


def _loops(instruction: _Instruction) -> Any:
    matches = [
        f"{name} = {MATCH.format(name=name, dtype=dtype, scope=scope)})"
        for name, (dtype, scope) in instruction.buffers.items()
    ]
    return _function(instruction, matches, instruction.loops)


def _call(instruction: _Instruction) -> Any:
    matches = []
    for name, (dtype, scope) in instruction.buffers.items():
        matches += [f"{name}1 = T.int32()", f"{name}0 = T.int32()"]
        match = MATCH.format(name=name, dtype=dtype, scope=scope)
        matches.append(f"{name} = {match}, strides=[{name}1, {name}0])")
    fragments = {
        name: f"{name}.elem_offset // {name}1 // 16 * ({name}1 // 16)"
        f" + {name}.elem_offset % {name}1 // 16"
        for name in instruction.buffers
    }
    return _function(instruction, matches, f"T.evaluate({instruction.call.format(**fragments)})")


def _function(instruction: _Instruction, matches: list[str], body: str) -> Any:
    source = FUNCTION.format(
        handles=", ".join(f"{name}_: T.handle" for name in instruction.buffers),
        matches=indent("\n".join(matches), " " * 4),
        reads=", ".join(f"{name}[0:16, 0:16]" for name in instruction.read),
        writes=f"{list(instruction.buffers)[-1]}[0:16, 0:16]",
        body=indent(body, " " * 8),
    )
    return from_source(source, check_well_formed=False)
