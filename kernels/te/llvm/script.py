"""A kernel of straight code as TVM sees it: a loop over tasks, shared by threads, of calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from textwrap import indent

from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.script import from_source

from kernels.te.llvm.code import linked

MAIN = """
@T.prim_func(s_tir=True)
def main({arguments}):
    T.func_attr({{"tirx.noalias": True}})
    for {loops} in T.grid({extents}):
        with T.sblock("y"):
            {variables} = T.axis.remap("{kinds}", [{loops}])
            T.reads({reads})
            T.writes({writes})
{task}
"""


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
    task      its statements, in TVMScript
    codes     of what they call, by name
    by_image  arguments of which a task sees image `vn` alone
    """
    regions = [
        f"{name}[{'vn, ' if name in by_image else ''}{_every(shape[name in by_image :])}]"
        for name, shape in shapes.items()
    ]
    main = MAIN.format(
        arguments=", ".join(
            f'{name}: T.Buffer({tuple(shape)}, "{dtype}")' for name, shape in shapes.items()
        ),
        loops=", ".join(name for name, _ in loops.values()),
        extents=", ".join(str(extent) for _, extent in loops.values()),
        variables=", ".join(loops),
        kinds="S" * len(loops),
        reads=", ".join(regions[:-1]),
        writes=regions[-1],
        task=indent(task.strip("\n"), " " * 12),
    )
    schedule = Schedule(from_source(main))
    fused = schedule.fuse(*schedule.get_loops(schedule.get_sblock("y")))
    schedule.parallel(fused)
    schedule.annotate(fused, "pragma_import_llvm", linked(codes.values()))
    return schedule.mod


def _every(shape: Sequence[int]) -> str:
    return ", ".join(f"0:{size}" for size in shape)
