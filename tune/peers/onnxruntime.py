"""ONNX Runtime on its CPU provider, all graph optimisations on."""

from __future__ import annotations

from typing import Any

import onnxruntime as ort

from tune.peers import Array, Job
from tune.peers.conv2d import nchw_layout
from tune.peers.onnx_graph import model_bytes


def version() -> str:
    return str(ort.__version__)


def prepare(job: Job) -> Session:
    """The network in a session whose pool has `job.threads` threads, the caller one of them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return Session(ort.InferenceSession(model_bytes(job), options, ["CPUExecutionProvider"]))


class Session:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._name = session.get_inputs()[0].name

    def bind(self, x: Array) -> None:
        self._feed = {self._name: nchw_layout(x)}

    def run(self) -> list[Array]:
        y: list[Array] = self._session.run(None, self._feed)
        return y

    def logits(self, y: list[Array]) -> Array:
        return y[0]
