"""TensorRT, its engine built for exactly this network, dtype and card, launched as a CUDA graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorrt as trt
import torch

from tune.peers import Array, Job
from tune.peers.conv2d import nchw_layout
from tune.peers.onnx_graph import model_bytes


def version() -> str:
    return str(trt.__version__)


def prepare(job: Job) -> Engine:
    """The network; its engine is built when it is bound, for TensorRT chooses by the clock."""
    return Engine(job)


def built(job: Job) -> Any:
    """The engine in the dtypes that the network's graph says, without TF32."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model_bytes(job)):
        raise RuntimeError(f"TensorRT cannot read the network: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise RuntimeError("TensorRT built no engine")
    return trt.Runtime(logger).deserialize_cuda_engine(serialized)


class Engine:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._dtype = getattr(torch, job.model.dtype)
        self._y = torch.empty(job.model.batch, job.model.classes, dtype=self._dtype, device="cuda")
        self.stream = torch.cuda.current_stream().cuda_stream

    def bind(self, x: Array) -> None:
        self._engine = built(self._job)
        self._context = self._engine.create_execution_context()
        self._x = torch.from_numpy(nchw_layout(x)).to("cuda", self._dtype)
        for number, tensor in enumerate((self._x, self._y)):
            name = self._engine.get_tensor_name(number)
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._execute(self.stream)  # what it loads and allocates cannot be captured
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._execute(torch.cuda.current_stream().cuda_stream)

    def run(self) -> torch.Tensor:
        self._graph.replay()
        return self._y

    def logits(self, y: torch.Tensor) -> Array:
        logits: Array = y.cpu().numpy().astype(np.float32, copy=False)
        return logits

    def _execute(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("TensorRT did not start the network")
