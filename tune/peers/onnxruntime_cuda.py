"""ONNX Runtime on its CUDA provider, input and output in the GPU's memory, as a CUDA graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from tune.cuda import new_stream
from tune.peers import Array, Job
from tune.peers.conv2d import nchw_layout
from tune.peers.onnx_graph import model_bytes
from tune.peers.onnxruntime import version

__all__ = ["prepare", "version"]

PROVIDER = "CUDAExecutionProvider"


def prepare(job: Job) -> Session:
    """The network, each convolution by the fastest algorithm, without TF32."""
    torch.cuda.init()
    stream = new_stream()
    settings = {
        "user_compute_stream": str(stream),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "0",
        "enable_cuda_graph": "1",
    }
    session = ort.InferenceSession(model_bytes(job), providers=[(PROVIDER, settings)])
    if PROVIDER not in session.get_providers():  # it says nothing and takes the CPU
        raise RuntimeError(
            f"this onnxruntime has no {PROVIDER} that works; expected one of the package "
            f"onnxruntime-gpu; install it in the place of onnxruntime"
        )
    return Session(session, job, stream)


class Session:
    def __init__(self, session: Any, job: Job, stream: int) -> None:
        self._session = session
        self._dtype = np.dtype(job.model.dtype)
        self._shape = (job.model.batch, job.model.classes)
        self.stream = stream

    def bind(self, x: Array) -> None:
        image = nchw_layout(x).astype(self._dtype)
        self._x = ort.OrtValue.ortvalue_from_numpy(image, "cuda", 0)
        self._y = ort.OrtValue.ortvalue_from_shape_and_type(self._shape, self._dtype, "cuda", 0)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, self._x)
        self._binding.bind_ortvalue_output(self._session.get_outputs()[0].name, self._y)

    def run(self) -> Any:
        self._session.run_with_iobinding(self._binding)
        return self._y

    def logits(self, y: Any) -> Array:
        torch.cuda.synchronize()
        logits: Array = y.numpy().astype(np.float32, copy=False)
        return logits
