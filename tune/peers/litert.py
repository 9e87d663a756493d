"""LiteRT, TensorFlow Lite's runtime, whose kernels on a CPU are XNNPACK's.

The .tflite file is written from the folded weights: activations are part of their convolution, and
padding is its own where it is what TensorFlow calls SAME, an operator before it else.

Format  a FlatBuffer, by the schema that the package brings; buffer 0 is empty, and stands for
        whatever a file does not hold.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tflite
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from kernels.workload import Conv, Depthwise, Head, Pointwise, Single
from tune import weights
from tune.peers import Array, Job

IDENTIFIER = b"TFL3"
VERSION = 3
TYPES = {
    np.dtype("float32"): tflite.TensorType.FLOAT32,
    np.dtype("int32"): tflite.TensorType.INT32,
}
ACTIVATIONS = {
    "none": tflite.ActivationFunctionType.NONE,
    "relu": tflite.ActivationFunctionType.RELU,
    "relu6": tflite.ActivationFunctionType.RELU6,
}


def version() -> str:
    return metadata.version("ai-edge-litert")


def prepare(job: Job) -> Net:
    """The network on `job.threads` threads of XNNPACK's pool."""
    interpreter = Interpreter(model_content=model_bytes(job), num_threads=job.threads)
    interpreter.allocate_tensors()
    return Net(interpreter)


class Net:
    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        [self._input] = [each["index"] for each in interpreter.get_input_details()]
        [self._output] = [each["index"] for each in interpreter.get_output_details()]

    def bind(self, x: Array) -> None:
        self._interpreter.set_tensor(self._input, x)

    def run(self) -> Any:
        self._interpreter.invoke()

    def logits(self, y: Any) -> Array:
        logits: Array = self._interpreter.get_tensor(self._output)
        return logits


def model_bytes(job: Job) -> bytes:
    """What the .tflite file of the network holds: images (N,H,W,3) in, logits (N,classes) out."""
    folded = weights.fold(job.weights, job.model)
    graph = _Graph()
    first = value = graph.value("image", job.model.input_shape)
    for layer in job.model.layers:
        value = _layer(graph, layer.name, layer.workload, value, *folded[layer.name])
    return graph.model_bytes(first, value)


class _Graph:
    """Tensors, buffers and operators, as the schema has them."""

    def __init__(self) -> None:
        self._buffers = [tflite.BufferT()]
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[int] = []

    def value(
        self, name: str, shape: tuple[int, ...], buffer: int = 0, dtype: str = "float32"
    ) -> int:
        """The number of a new tensor; without a buffer it is computed."""
        tensor = tflite.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(shape), buffer
        tensor.type = TYPES[np.dtype(dtype)]
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(self, name: str, array: NDArray[Any]) -> int:
        buffer = tflite.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self._buffers.append(buffer)
        return self.value(name, array.shape, len(self._buffers) - 1, str(array.dtype))

    def apply(
        self, kind: str, options: Any, inputs: list[int], name: str, shape: tuple[int, ...]
    ) -> int:
        """The number of the tensor that an operator computes."""
        code = getattr(tflite.BuiltinOperator, kind)
        if code not in self._codes:
            self._codes.append(code)
        operator = tflite.OperatorT()
        operator.opcodeIndex = self._codes.index(code)
        made = self.value(name, shape)
        operator.inputs, operator.outputs = inputs, [made]
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(
            tflite.BuiltinOptions, type(options).__name__.removesuffix("T")
        )
        self._operators.append(operator)
        return made

    def model_bytes(self, first: int, last: int) -> bytes:
        graph = tflite.SubGraphT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = [first], [last]
        model = tflite.ModelT()
        model.version, model.subgraphs, model.buffers = VERSION, [graph], self._buffers
        model.operatorCodes = []
        for code in self._codes:
            entry = tflite.OperatorCodeT()
            entry.builtinCode = entry.deprecatedBuiltinCode = code
            model.operatorCodes.append(entry)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())


def _layer(graph: _Graph, name: str, workload: Single, x: int, wt: Array, bias: Array) -> int:
    """The tensor that a layer computes of tensor `x`."""
    if isinstance(workload, Head):
        reducer = tflite.ReducerOptionsT()
        reducer.keepDims = False
        axes = graph.constant(f"{name}.axes", np.array([1, 2], np.int32))
        means = (workload.N, workload.Ci)
        x = graph.apply("MEAN", reducer, [x, axes], f"{name}.mean", means)
        kind, options, wt = "FULLY_CONNECTED", tflite.FullyConnectedOptionsT(), wt.T
    else:
        kind, options, wt = _convolution(workload, wt)
        x = _padded(graph, name, workload, x, options)
    options.fusedActivationFunction = ACTIVATIONS[workload.activation]
    arguments = [graph.constant(f"{name}.wt", wt), graph.constant(f"{name}.bias", bias)]
    return graph.apply(kind, options, [x, *arguments], name, workload.y_shape)


def _convolution(workload: Conv | Depthwise | Pointwise, wt: Array) -> tuple[str, Any, Array]:
    """Operator, options and weights, (Co,K,K,Ci) or for a depthwise one (1,K,K,C)."""
    match workload:
        case Conv():
            kind, options, wt = "CONV_2D", tflite.Conv2DOptionsT(), wt.transpose(3, 0, 1, 2)
        case Depthwise():
            kind, options, wt = "DEPTHWISE_CONV_2D", tflite.DepthwiseConv2DOptionsT(), wt[None]
            options.depthMultiplier = 1
        case Pointwise():
            kind, options, wt = "CONV_2D", tflite.Conv2DOptionsT(), wt.T[:, None, None]
    options.strideH = options.strideW = getattr(workload, "stride", 1)
    options.dilationHFactor = options.dilationWFactor = 1
    return kind, options, wt


def _padded(
    graph: _Graph, name: str, workload: Conv | Depthwise | Pointwise, x: int, options: Any
) -> int:
    """The tensor that the convolution reads, and in its options how it pads that itself."""
    options.padding = tflite.Padding.VALID
    if isinstance(workload, Pointwise) or workload.pad == (0, 0, 0, 0):
        return x
    top, bottom, left, right = workload.pad
    if workload.pad == _same(workload):
        options.padding = tflite.Padding.SAME
        return x
    around = np.array([(0, 0), (top, bottom), (left, right), (0, 0)], np.int32)
    N, Hi, Wi, C = workload.x_shape
    shape = (N, Hi + top + bottom, Wi + left + right, C)
    amounts = graph.constant(f"{name}.pad", around)
    return graph.apply("PAD", tflite.PadOptionsT(), [x, amounts], f"{name}.padded", shape)


def _same(workload: Conv | Depthwise) -> tuple[int, int, int, int]:
    """What TensorFlow pads by that word: Ho is Hi / stride, rounded up, and less comes first."""
    pads: list[int] = []
    for size in (workload.Hi, workload.Wi):
        windows = -(-size // workload.stride)
        both = max(0, (windows - 1) * workload.stride + workload.K - size)
        pads += [both // 2, both - both // 2]
    top, bottom, left, right = pads
    return top, bottom, left, right
