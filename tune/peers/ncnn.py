"""ncnn on the CPU, its network files written from the folded weights.

Format  a .param file has one layer a line, `type name inputs outputs in… out… key=value…`; the .bin
        file has the values in the same order, each weight led by a zero word that says float32.
Source  ncnn's wiki, pages "param and model file structure" and "operation param weight table".
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ncnn
import numpy as np

from kernels.workload import Head, Single
from tune import weights
from tune.peers import Array, Job
from tune.peers.conv2d import conv2d, nchw_layout

MAGIC = 7767517
RAW_FLOAT32 = bytes(4)
ACTIVATIONS = {"none": "9=0", "relu": "9=1", "relu6": "9=3 -23310=2,0.0,6.0"}


def version() -> str:
    return str(ncnn.__version__)


def prepare(job: Job) -> Net:
    """The network on `job.threads` OpenMP threads; 16-bit shortcuts for a float16 model alone."""
    net = ncnn.Net()
    net.opt.num_threads = job.threads
    half = job.model.dtype == "float16"
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = half
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = False
    net.opt.use_vulkan_compute = False
    params, values = _files(job)
    with tempfile.TemporaryDirectory() as folder:
        param_path, bin_path = Path(folder, "net.param"), Path(folder, "net.bin")
        param_path.write_text(params)
        bin_path.write_bytes(values)
        if net.load_param(str(param_path)) or net.load_model(str(bin_path)):
            raise RuntimeError(f"ncnn {version()} cannot load the network")
    return Net(net, output=job.model.layers[-1].name)


class Net:
    """A network that takes one image at a time: ncnn knows no batch."""

    def __init__(self, net: Any, output: str) -> None:
        self._net = net
        self._output = output

    def bind(self, x: Array) -> None:
        # clone: a Mat made from an array only points into it.
        self._images = [ncnn.Mat(image).clone() for image in nchw_layout(x)]

    def run(self) -> list[Any]:
        return [self._infer(image) for image in self._images]

    def logits(self, y: list[Any]) -> Array:
        return np.array([np.array(mat) for mat in y], np.float32)

    def _infer(self, image: Any) -> Any:
        with self._net.create_extractor() as extractor:
            extractor.input("image", image)
            return extractor.extract(self._output)[1]


def _files(job: Job) -> tuple[str, bytes]:
    """What the .param and the .bin file of the network hold."""
    folded = weights.fold(job.weights, job.model)
    lines = ["Input image 0 1 image"]
    values = []
    x = "image"
    for layer in job.model.layers:
        wt, bias = folded[layer.name]
        layer_lines, wt = _layer(layer.name, layer.workload, x, wt)
        lines += layer_lines
        values += [RAW_FLOAT32, wt.tobytes(), bias.tobytes()]
        x = layer.name
    counts = f"{len(lines)} {len(lines)}"  # layers and blobs: in a chain each layer gives one
    return "\n".join([str(MAGIC), counts, *lines, ""]), b"".join(values)


def _layer(name: str, workload: Single, x: str, wt: Array) -> tuple[list[str], Array]:
    """The lines of one layer, which reads blob `x` and gives blob `name`; its weights, laid out.

    A convolution wants (Co, Ci / groups, K, K), an inner product (Co, Ci).
    """
    activation = ACTIVATIONS[workload.activation]
    if isinstance(workload, Head):
        mean = f"{name}.mean"
        pool = f"Pooling {mean} 1 1 {x} {mean} 0=1 4=1"
        dense = (
            f"InnerProduct {name} 1 1 {mean} {name} 0={workload.Co} 1=1 2={wt.size} {activation}"
        )
        return [pool, dense], np.ascontiguousarray(wt.T)
    conv = conv2d(workload, wt)
    top, bottom, left, right = conv.pad
    kind = "Convolution" if conv.groups == 1 else "ConvolutionDepthWise"
    line = (
        f"{kind} {name} 1 1 {x} {name} 0={conv.Co} 1={conv.K} 3={conv.stride}"
        f" 4={left} 14={top} 15={right} 16={bottom} 5=1 6={conv.wt.size}"
        f" 7={conv.groups} {activation}"
    )
    return [line], conv.wt
