"""A kernel of straight code as TVM sees it: a loop over tasks, shared by threads, of calls."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from kernels.te.llvm.code import linked

# Python would turn 0 <= n into n >= 0.
COMPARISONS = {ast.Lt: "T.LT", ast.LtE: "T.LE", ast.Gt: "T.GT", ast.GtE: "T.GE"}


def parallel(
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
    loops: Mapping[str, tuple[str, int]],
    task: str,
    codes: Mapping[str, str],
    *,
    by_image: Collection[str] = (),
) -> IRModule:
    """The scheduled function `main`, whose arguments are of such shapes, the output last.

    loops     over tasks: the variable that a task knows its number by, name and extent
    task      its statements, in TVMScript: loops, conditions, buffers of its own and calls
    codes     of what they call, by name
    by_image  arguments of which a task sees image `vn` alone
    """
    extents = (extent for _, extent in loops.values())
    counters = ", ".join(name for name, _ in loops.values())
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"tirx.noalias": True})
        buffers = {
            name: T.arg(name, T.buffer(tuple(shape), dtype)) for name, shape in shapes.items()
        }
        with _loop(T.grid(*extents), counters) as numbers, T.sblock("y"):
            variables = T.axis.remap("S" * len(loops), _each(numbers))
            seen = dict(zip(loops, _each(_named(", ".join(loops), variables)), strict=True))
            regions = []
            for name, buffer in buffers.items():
                every = [slice(0, size) for size in shapes[name]]
                regions.append(buffer[(seen["vn"], *every[1:]) if name in by_image else (*every,)])
            T.reads(*regions[:-1])
            T.writes(regions[-1])
            _emit(task, buffers | seen)
    schedule = Schedule(IRModule({"main": builder.get()}))
    fused = schedule.fuse(*schedule.get_loops(schedule.get_sblock("y")))
    schedule.parallel(fused)
    schedule.annotate(fused, "pragma_import_llvm", linked(codes.values()))
    return schedule.mod


def _emit(task: str, names: Mapping[str, Any]) -> None:
    """Add the statements to the function that is being built.

    names  what they mean

    TVM's own parser does the same one expression after the other, each compiled by itself: so a
    pointwise kernel is lowered in 11 ms, not in 44 (sapphirerapids, 2026-11-28). `exec` runs what
    kernels of this package wrote.
    """
    statements = ast.fix_missing_locations(_Calls().visit(ast.parse(task)))
    known = {"T": T, "range": _range, "_loop": _loop, "_named": _named, "_evaluated": _evaluated}
    exec(compile(statements, "task", "exec"), known | dict(names))


class _Calls(ast.NodeTransformer):
    """TVMScript's loops, conditions and names as the calls of TVM's builder that they stand for."""

    def visit_For(self, node: ast.For) -> ast.With:
        self.generic_visit(node)
        loop = _call("_loop", node.iter, ast.Constant(ast.unparse(node.target).strip("()")))
        return ast.With([ast.withitem(loop, node.target)], node.body)

    def visit_If(self, node: ast.If) -> ast.With:
        self.generic_visit(node)
        branches: list[ast.stmt] = [
            ast.With([ast.withitem(_call(f"T.{name}"))], body)
            for name, body in (("Then", node.body), ("Else", node.orelse))
            if body
        ]
        return ast.With([ast.withitem(_call("T.If", node.test))], branches)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        name = "T.And" if isinstance(node.op, ast.And) else "T.Or"
        return reduce(partial(_call, name), node.values)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        [operator], [right] = node.ops, node.comparators
        return _call(COMPARISONS[type(operator)], node.left, right)

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        self.generic_visit(node)
        return ast.Expr(_call("_evaluated", node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        node.value = _call("_named", ast.Constant(ast.unparse(node.targets[0])), node.value)
        return node


def _call(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.parse(name, mode="eval").body, list(arguments), [])


def _range(*bounds: Any) -> Any:
    return T.serial(*bounds) if len(bounds) > 1 else T.serial(0, *bounds)


@contextmanager
def _loop(frame: Any, names: str) -> Iterator[Any]:
    with frame as variables:
        yield _named(names, variables)


def _evaluated(value: Any) -> None:
    """Be a statement, if it is none yet."""
    if value is not None:
        T.evaluate(value)


def _named(names: str, values: Any) -> Any:
    """The same, under such names."""
    for name, value in zip(names.split(", "), _each(values), strict=True):
        IRBuilder.name(name, value)
    return values


def _each(values: Any) -> Sequence[Any]:
    """TVM's builder gives one by itself, several in an array."""
    return values if isinstance(values, Sequence) else [values]
