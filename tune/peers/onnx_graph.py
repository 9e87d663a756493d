"""The network as an ONNX graph, for the runtimes that read one.

Built from the folded weights, not exported: explicit pads, Clip for ReLU6, no batch norm left, and
no dependence on what an exporter makes of a module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, checker, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from kernels.workload import Head, Single
from tune import weights
from tune.peers import Array, Job
from tune.peers.conv2d import conv2d

OPSET = 13
IR_VERSION = 8


def model_bytes(job: Job) -> bytes:
    """A serialised model with one input (N, 3, H, W) and one output (N, classes), in its dtype."""
    dtype = np.dtype(job.model.dtype)
    folded = weights.fold(job.weights, job.model)
    nodes: list[NodeProto] = []
    constants: dict[str, NDArray[Any]] = {"zero": np.array(0), "six": np.array(6)}
    value = "image"
    for layer in job.model.layers:
        layer_nodes, layer_constants = _layer(
            layer.name, layer.workload, value, *folded[layer.name]
        )
        nodes += layer_nodes
        constants |= layer_constants
        value = layer.name
    N, H, W, C = job.model.input_shape
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        nodes,
        "mobilenet_v1",
        [make_tensor_value_info("image", kind, (N, C, H, W))],
        [make_tensor_value_info(value, kind, (N, job.model.classes))],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString())


def _layer(
    name: str, workload: Single, x: str, wt: Array, bias: Array
) -> tuple[list[NodeProto], dict[str, Array]]:
    """The nodes and constants of one layer, which reads the value `x` and gives `name`."""
    arguments = [f"{name}.wt", f"{name}.bias"]
    sums = name if workload.activation == "none" else f"{name}.sums"
    if isinstance(workload, Head):
        nodes = [
            make_node("GlobalAveragePool", [x], [f"{name}.mean"]),
            make_node("Flatten", [f"{name}.mean"], [f"{name}.flat"]),
            make_node("Gemm", [f"{name}.flat", *arguments], [sums]),
        ]
    else:
        conv = conv2d(workload, wt)
        wt = conv.wt
        top, bottom, left, right = conv.pad
        nodes = [
            make_node(
                "Conv",
                [x, *arguments],
                [sums],
                kernel_shape=[conv.K, conv.K],
                strides=[conv.stride, conv.stride],
                pads=[top, left, bottom, right],
                group=conv.groups,
            )
        ]
    match workload.activation:
        case "relu":
            nodes.append(make_node("Relu", [sums], [name]))
        case "relu6":
            nodes.append(make_node("Clip", [sums, "zero", "six"], [name]))
    return nodes, dict(zip(arguments, (wt, bias), strict=True))
