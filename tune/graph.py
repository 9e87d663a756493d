"""A plan and its weights in, one Relax function out: image to logits, weights inside.

On a GPU the function becomes one CUDA graph, captured the first time and launched from then on. A
graph reads and writes where it did when it was captured. So the function takes the memory of its
logits, too, always the same; and what a kernel leaves from one launch to the next lies in memory
that the network plans, since TVM would take it from the thread's own, which ends with the thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kernels import kernel
from kernels.reference import Array
from targets.target import Target
from tune.builder import argument_shapes
from tune.plan import Choice

FIXED = {"num_input": 0}  # to Relax: arguments from this one on are the same every time


def assemble(
    choices: Sequence[Choice],
    weights: Mapping[str, tuple[Array, Array]],
    target: Target,
    input_dtype: str | None = None,
) -> Any:
    """An IRModule whose `main` takes the image (N,H,W,3) and returns the logits (N,classes).

    On a GPU it takes both, always the same tensors, and returns the second one.
    Machine code that kernels bring along is in its attribute `external_mods`.

    weights      folded wt and bias by layer name, in canonical layouts
    input_dtype  of the image: the network's own by default, or uint8 for bytes as photos have them
    """
    from tvm import relax

    from kernels.te import normalise

    first, last = choices[0].workload, choices[-1].workload
    captured = target.kind == "cuda"
    builder = relax.BlockBuilder()
    functions = _Functions(builder, target)
    image = relax.Var("image", relax.TensorType(first.x_shape, input_dtype or first.dtype))
    logits = relax.Var("logits", relax.TensorType(last.y_shape, last.dtype))

    def shaped(value: Any, shape: tuple[int, ...]) -> Any:
        return value if _sizes(value.ty) == shape else builder.emit(relax.op.reshape(value, shape))

    arguments, facts = ([image, logits], FIXED) if captured else ([image], {})
    with builder.function("main", arguments, facts):
        with builder.dataflow():
            value = image
            if input_dtype not in (None, first.dtype):
                step = normalise.lower(first.x_shape, first.dtype, target)["main"]
                symbol = builder.add_func(_scheduled(step), "normalise")
                result = relax.TensorType(first.x_shape, first.dtype)
                value = builder.emit(relax.call_tir(symbol, [value], result))
            for choice in choices:
                function = functions.of(choice)
                results = list(function.results)
                packed = kernel(choice.kernel).pack(
                    choice.workload, choice.config, _weights(choice, weights)
                )
                given = [shaped(value, function.x_shape), *map(relax.const, packed)]
                if captured and choice is choices[-1]:
                    y, *scratch = results
                    places = [len(given), *(-1 for _ in scratch)]  # -1 is memory of its own
                    given.append(shaped(logits, _sizes(y)))
                    call = relax.op.call_tir_inplace(function.symbol, given, places, results)
                else:
                    call = relax.call_tir(function.symbol, given, results)
                value = builder.emit(call)
                if len(results) > 1:
                    value = builder.emit(value[0])
            value = shaped(value, last.y_shape)
            if captured:  # a graph has for its results what is used behind it, not what is returned
                same = relax.call_pure_packed("vm.builtin.copy", value, ty_args=value.ty)
                value = builder.emit(same)
            output = builder.emit_output(value)
        builder.emit_func_output(output)
    module = builder.get()
    return module.with_attr("external_mods", functions.brought) if functions.brought else module


@dataclass(frozen=True, slots=True)
class _Function:
    """A PrimFunc of the module: its symbol, the shape of x, the types of y and of its scratch."""

    symbol: Any
    x_shape: tuple[int, ...]
    results: tuple[Any, ...]


class _Functions:
    """Of a module, one for each workload."""

    def __init__(self, builder: Any, target: Target) -> None:
        self._builder, self._target = builder, target
        self._known: dict[str, _Function] = {}
        self.brought: list[Any] = []

    def of(self, choice: Choice) -> _Function:
        """What computes the layer."""
        from tvm import relax

        workload = choice.workload
        if workload.key not in self._known:
            lowered = kernel(choice.kernel).lower(workload, choice.config, self._target)
            self.brought += lowered.attrs.get("external_mods", []) if lowered.attrs else []
            function = lowered["main"]
            x_shape, *_, y_shape = argument_shapes(function)
            function, scratch = _hoisted(function)
            symbol = self._builder.add_func(_scheduled(function), choice.name.replace(".", "_"))
            y = relax.TensorType(y_shape, workload.dtype)
            self._known[workload.key] = _Function(symbol, x_shape, (y, *scratch))
        return self._known[workload.key]


def _weights(choice: Choice, folded: Mapping[str, tuple[Array, Array]]) -> tuple[Array, ...]:
    """Filter and bias in turns, filters in the layer's dtype."""
    return tuple(
        array
        for layer in choice.layers
        for wt, bias in [folded[layer.name]]
        for array in (wt.astype(layer.workload.dtype), bias)
    )


def _hoisted(function: Any) -> tuple[Any, list[Any]]:
    """A PrimFunc with its outermost buffers as its last arguments; their types in Relax."""
    from tvm import relax, tirx

    statements = list(getattr(function.body, "seq", ()))
    held = [each.buffer for each in statements if isinstance(each, tirx.AllocBuffer)]
    if not held:
        return function, []
    body = tirx.SeqStmt([each for each in statements if not isinstance(each, tirx.AllocBuffer)])
    hoisted = tirx.PrimFunc([*function.params, *held], body, function.ret_type, function.attrs)
    return hoisted, [relax.TensorType(_sizes(each), str(each.dtype)) for each in held]


def _sizes(shaped: Any) -> tuple[int, ...]:
    """Of a buffer or a tensor type."""
    return tuple(map(int, shaped.shape))


def _scheduled(function: Any) -> Any:
    """Marked, so that no pass schedules it anew."""
    return function.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
