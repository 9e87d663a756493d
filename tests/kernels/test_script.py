"""Kernels' TVMScript says what TVM's own parser takes it to say."""

from __future__ import annotations

import pytest
from tvm.ir import assert_structural_equal
from tvm.s_tir import Schedule
from tvm.script import from_source

from kernels.te.llvm.script import parallel

MAIN = """
@T.prim_func(s_tir=True)
def main(x: T.Buffer((2, 64), "float32"), y: T.Buffer((2, 64), "float32")):
    T.func_attr({"tirx.noalias": True})
    for n, chunk in T.grid(2, 4):
        with T.sblock("y"):
            vn, vh = T.axis.remap("SS", [n, chunk])
            T.reads(x[REGION, 0:64])
            T.writes(y[REGION, 0:64])
TASK
"""
TASKS = {
    "call": """
T.evaluate(T.call_extern("int32", "f", T.address_of(x[vn, vh * 16]), y.access_ptr("w")))
""",
    "bare call": """
T.call_extern("int32", "f", T.min((vh + 1) * 16, 48), 3)
""",
    "loops": """
for c in range(4):
    T.evaluate(T.call_extern("int32", "f", vh * 4 + c))
for r in range(1, 3):
    for wo, c in T.grid(2, 3):
        T.evaluate(T.call_extern("int32", "g", r + wo, c))
""",
    "conditions": """
if 0 <= vh * 4 + vn and vh < 3 and vn >= 1:
    T.evaluate(T.call_extern("int32", "f", vh))
else:
    if vh > 1 or vn < 1:
        T.evaluate(T.call_extern("int32", "g", vn))
""",
    "buffer": """
z = T.sblock_alloc_buffer((4, 16), "float32")
T.evaluate(T.call_extern("int32", "f", z.access_ptr("w", offset=vh * 16)))
""",
}


@pytest.mark.parametrize("image", [False, True], ids=["all", "image"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_as_parsed(task: str, image: bool) -> None:
    region = "vn" if image else "0:2"
    lines = "".join(f"            {line}\n" for line in task.strip().split("\n"))
    source = MAIN.replace("REGION", region).replace("TASK", lines)
    schedule = Schedule(from_source(source, check_well_formed=False))
    fused = schedule.fuse(*schedule.get_loops(schedule.get_sblock("y")))
    schedule.parallel(fused)
    schedule.annotate(fused, "pragma_import_llvm", "; no code")
    found = parallel(
        {"x": (2, 64), "y": (2, 64)},
        "float32",
        {"vn": ("n", 2), "vh": ("chunk", 4)},
        task,
        {"f": "; no code"},
        by_image=["x", "y"] if image else [],
    )
    assert_structural_equal(found, schedule.mod)
    assert found.script() == schedule.mod.script()
