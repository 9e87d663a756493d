"""Who is compared: our library and the runtimes that an engineer would otherwise ship.

A peer is one module with two functions,

    version() -> str                     of the library that does the work
    prepare(job: Job) -> Contender       the network for `job.threads` threads or, as `job.place`
                                         says, for the GPU, where others prepare at the same time:
                                         what is compiled by the clock there, `bind` or `run` does

imported only in the process that measures it. Each takes the same folded or unfolded weights and
the same input, computes in the model's dtype and is set up as its own manual advises.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tune.mobilenet import MobileNet
    from tune.weights import Weights

Array = NDArray[np.float32]

# Different images of a batch at random; a larger one repeats them, for the reference, which
# computes each once, takes its time. A prime, so that images a power of two apart differ.
IMAGES = 5


class Peer(NamedTuple):
    """Where a peer lives, the packages that it needs, and what it is set up to compute in.

    slow  it may take minutes to be ready, and has to wait where time is short
    """

    module: str
    packages: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    slow: bool = False


OURS = "septune"

PEERS = {
    OURS: Peer("tune.peers.septune", dtypes=("float32", "float16")),
    "torch-eager": Peer("tune.peers.torch_eager", ("torch",)),
    "torch-eager-channels-last": Peer("tune.peers.torch_eager_channels_last", ("torch",)),
    "torch-compile": Peer("tune.peers.torch_compile", ("torch",)),
    "onnxruntime": Peer("tune.peers.onnxruntime", ("onnx", "onnxruntime")),
    "openvino": Peer("tune.peers.openvino", ("onnx", "openvino")),
    "litert": Peer("tune.peers.litert", ("ai_edge_litert",)),
    "ncnn": Peer("tune.peers.ncnn", ("ncnn",), ("float32", "float16")),
}

BOTH = ("float32", "float16")
GPU_PEERS = {
    OURS: PEERS[OURS],
    "torch-eager": Peer("tune.peers.torch_eager", ("torch",), BOTH),
    "torch-eager-channels-last": Peer("tune.peers.torch_eager_channels_last", ("torch",), BOTH),
    "torch-graph": Peer("tune.peers.torch_graph", ("torch",), BOTH),
    "torch-graph-channels-last": Peer("tune.peers.torch_graph_channels_last", ("torch",), BOTH),
    "onnxruntime": Peer("tune.peers.onnxruntime_cuda", ("onnx", "onnxruntime", "torch"), BOTH),
    "torch-compile": Peer("tune.peers.torch_compile", ("torch",), BOTH, slow=True),
    "tensorrt": Peer("tune.peers.tensorrt", ("onnx", "tensorrt", "torch"), BOTH, slow=True),
    "torch-max-autotune": Peer("tune.peers.torch_max_autotune", ("torch",), BOTH, slow=True),
}

# Never timed: the judge of the others' outputs.
REFERENCE = Peer("tune.peers.torch_float64", ("torch",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every contender is given. x (N, H, W, 3); `library` is ours, peers use `weights`.

    place  where it computes, as PyTorch calls it: cpu or cuda
    """

    model: MobileNet
    weights: Weights
    x: Array
    threads: int
    library: Path | None = None
    place: str = "cpu"

    @classmethod
    def at_random(
        cls,
        model: MobileNet,
        weights: Weights,
        *,
        threads: int,
        seed: int,
        library: Path | None = None,
        place: str = "cpu",
    ) -> Job:
        """On `random_images`."""
        x = random_images(model, seed)
        return cls(model=model, weights=weights, x=x, threads=threads, library=library, place=place)


def random_images(model: MobileNet, seed: int) -> Array:
    """A batch (N, H, W, 3), the same for a seed: bytes as floats of the model's dtype.

    A library that takes bytes finds them again by `as_input`. Of a large batch only IMAGES are
    different. Each lies in memory as often as the batch has it, so that no layer is faster for it,
    and neighbours differ, so that the logits of another image are found out.
    """
    shape = (min(model.batch, IMAGES), *model.input_shape[1:])
    photos = np.random.default_rng(seed).integers(0, 256, shape)
    photos = photos[np.arange(model.batch) % IMAGES]
    x = photos.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return x.astype(model.dtype).astype(np.float32)


def as_input(x: Array, dtype: str) -> NDArray[Any]:
    """Images as a library takes them: as floats of `dtype`, or as the bytes that they were."""
    return np.rint((x + 1) * 127.5).astype(dtype) if dtype == "uint8" else x.astype(dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A contender without a result, and why."""

    name: str
    reason: str


class Contender(Protocol):
    """A prepared network. Only `run` is timed: no conversion that a user would not pay for.

    On the GPU it has a `stream`, too: `run` sends its work there and need not wait for it.
    """

    def bind(self, x: Array) -> None:
        """Put x (N, H, W, 3) into the library's own tensor. What is still to be done, is done."""

    def run(self) -> Any:
        """The output for the bound input, in the library's own form."""

    def logits(self, y: Any) -> Array:
        """What `run` gave, as (N, classes) float32."""
