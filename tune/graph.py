"""A plan and its weights in, one Relax function out: image to logits, weights inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kernels import kernel
from kernels.reference import Array
from targets.target import Target
from tune.builder import argument_shapes
from tune.plan import Choice


def assemble(
    choices: Sequence[Choice],
    weights: Mapping[str, tuple[Array, Array]],
    target: Target,
    input_dtype: str | None = None,
) -> Any:
    """An IRModule whose `main` takes the image (N,H,W,3) and returns the logits (N,classes).

    Machine code that kernels bring along is in its attribute `external_mods`.

    weights      folded wt and bias by layer name, in canonical layouts
    input_dtype  of the image: the network's own by default, or uint8 for bytes as photos have them
    """
    from tvm import relax

    from kernels.te import normalise

    first, last = choices[0].workload, choices[-1].workload
    builder = relax.BlockBuilder()
    image = relax.Var("image", relax.TensorType(first.x_shape, input_dtype or first.dtype))
    functions: dict[str, Any] = {}
    brought: list[Any] = []
    with builder.function("main", [image]):
        with builder.dataflow():
            value, shape = image, first.x_shape
            if input_dtype not in (None, first.dtype):
                step = normalise.lower(shape, first.dtype, target)["main"]
                symbol = builder.add_func(_scheduled(step), "normalise")
                result = relax.TensorType(shape, first.dtype)
                value = builder.emit(relax.call_tir(symbol, [value], result))
            for choice in choices:
                workload, config = choice.workload, choice.config
                scheduled = kernel(choice.kernel)
                if workload.key not in functions:
                    lowered = scheduled.lower(workload, config, target)
                    brought += lowered.attrs.get("external_mods", []) if lowered.attrs else []
                    function = lowered["main"]
                    name = choice.name.replace(".", "_")
                    functions[workload.key] = builder.add_func(_scheduled(function), name), function
                symbol, function = functions[workload.key]
                x_shape, *_, y_shape = argument_shapes(function)
                packed = scheduled.pack(workload, config, _weights(choice, weights))
                if x_shape != shape:
                    value = builder.emit(relax.op.reshape(value, x_shape))
                arguments = [value, *map(relax.const, packed)]
                result = relax.TensorType(y_shape, workload.dtype)
                value, shape = builder.emit(relax.call_tir(symbol, arguments, result)), y_shape
            if shape != last.y_shape:
                value = builder.emit(relax.op.reshape(value, last.y_shape))
            output = builder.emit_output(value)
        builder.emit_func_output(output)
    module = builder.get()
    return module.with_attr("external_mods", brought) if brought else module


def _weights(choice: Choice, folded: Mapping[str, tuple[Array, Array]]) -> tuple[Array, ...]:
    """Filter and bias in turns, filters in the layer's dtype."""
    return tuple(
        array
        for layer in choice.layers
        for wt, bias in [folded[layer.name]]
        for array in (wt.astype(layer.workload.dtype), bias)
    )


def _scheduled(function: Any) -> Any:
    """Marked, so that no pass schedules it anew."""
    return function.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
