"""OpenVINO on the CPU in float32, for latency."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import properties
from openvino.properties import hint

from tune.peers import Array, Job
from tune.peers.conv2d import nchw_layout
from tune.peers.onnx_graph import model_bytes


def version() -> str:
    return str(ov.__version__).split("-")[0]


def prepare(job: Job) -> Request:
    """The network, compiled; left alone, OpenVINO computes in bfloat16 where the CPU can."""
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(model_bytes(job)),
        "CPU",
        {
            hint.inference_precision: ov.Type.f32,
            hint.performance_mode: hint.PerformanceMode.LATENCY,
            properties.inference_num_threads: job.threads,
            properties.num_streams: 1,
            # As many threads as were asked for, also where two share a core.
            hint.enable_hyper_threading: True,
        },
    )
    return Request(compiled.create_infer_request())


class Request:
    def __init__(self, request: Any) -> None:
        self._request = request

    def bind(self, x: Array) -> None:
        self._request.set_input_tensor(ov.Tensor(nchw_layout(x)))

    def run(self) -> ov.Tensor:
        self._request.infer()
        return self._request.get_output_tensor()

    def logits(self, y: ov.Tensor) -> Array:
        return np.array(y.data, np.float32)
