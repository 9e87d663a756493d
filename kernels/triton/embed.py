"""Compiled launches in TVM: one function `main`, and the machine code beside it.

TVM's own bridge to Triton asks for a driver and gives up the alignment of pointers. Here the code
is compiled already, becomes a module of TVM's CUDA runtime, and is found by its name when the
function calls it: the library that results needs neither Triton nor a compiler.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tvm
from tvm.ir import IRModule
from tvm_ffi import get_global_func

from kernels.triton.aot import Binary, compile_call
from kernels.triton.call import Call, Tensor
from targets import cuda_toolkit
from targets.target import Target

# How the runtime maps a call's last arguments to a launch.
AXES = ("threadIdx.x", "blockIdx.x")
# Takes no argument; so spelled.
DEPENDENT = "tirx.use_programtic_dependent_launch"
SHARED = "tirx.use_dyn_shared_memory"  # which must be the last


def lowered(call: Call, target: Target) -> IRModule:
    """`main` with the call's arguments; its machine code in the attribute `external_mods`.

    ToolkitError when TVM's CUDA runtime does not load.
    """
    binaries = compile_call(call, target)
    function = tvm.script.from_source(_script(call, binaries), check_well_formed=False)
    return IRModule({"main": function}).with_attr("external_mods", [*map(module, binaries)])


def module(binary: Binary) -> Any:
    """A module of TVM's CUDA runtime that launches `binary`."""
    cuda_toolkit.load()
    tags = [*AXES]
    if binary.dependent:
        tags.append(DEPENDENT)
    if binary.shared_bytes:
        tags.append(SHARED)
    facts = {
        "name": binary.name,
        "arg_types": ["handle"] * len(binary.tensors) + ["int64", "int64"],
        "launch_param_tags": tags,
    }
    metadata = {"tvm_version": tvm.__version__, "func_info": {binary.name: facts}}
    functions = get_global_func("runtime.LoadMetaDataFromJSON")(json.dumps(metadata))
    return get_global_func("ffi.Module.create.cuda")(binary.cubin, "cubin", functions, {})


def _script(call: Call, binaries: tuple[Binary, ...]) -> str:
    parameters = ", ".join(f"{tensor.name}: {_buffer(tensor)}" for tensor in call.arguments)
    return "\n".join(
        (
            "@T.prim_func(s_tir=True)",
            f"def main({parameters}):",
            # 8 is Relax's "opaque": fused with nothing.
            '    T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})',
            *(f"    {line}" for line in _body(call, binaries)),
        )
    )


def _body(call: Call, binaries: tuple[Binary, ...]) -> Iterator[str]:
    for tensor in call.scratch:
        yield f'{tensor.name} = T.alloc_buffer({tensor.shape}, "{tensor.dtype}")'
    for binary in binaries:
        arguments = [f'"{binary.name}"', *(f"{name}.data" for name in binary.tensors)]
        arguments += ["T.int64(0)"] * 2
        launch = [binary.threads, binary.programs]
        launch += [binary.shared_bytes] if binary.shared_bytes else []
        arguments += [f"T.int32({value})" for value in launch]
        yield f"T.evaluate(T.call_packed({', '.join(arguments)}))"


def _buffer(tensor: Tensor) -> str:
    return f'T.Buffer({tensor.shape}, "{tensor.dtype}")'
