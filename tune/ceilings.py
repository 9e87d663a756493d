"""What this machine's GPU does at most, measured: bytes that a copy moves, FLOP/s of a product of
matrices, and what a kernel costs in a graph. Runs in a worker.

PyTorch asks NVIDIA's own library for the product; without PyTorch nothing here can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tune.cuda import Graph, Stopwatch

SIDES = (4096, 8192)  # of square matrices; of both the faster one counts
COPY_BYTES = 1 << 30  # of one of two buffers, more than any cache holds
NODES = 1000
REPEAT = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Of one card at one moment; clocks and power vary.

    copy_bytes_per_s  read and written together
    node_s            of one of many kernels of one element each, in a graph
    """

    device: str
    torch: str
    copy_bytes_per_s: float
    f16_flops: float
    tf32_flops: float
    f32_flops: float
    node_s: float


def ceilings() -> Ceilings:
    """All of them. ImportError without PyTorch, RuntimeError when it has no GPU."""
    import torch

    return Ceilings(
        device=torch.cuda.get_device_name(),
        torch=str(torch.__version__),
        copy_bytes_per_s=_copied(),
        f16_flops=matmul_flops("float16"),
        tf32_flops=matmul_flops("float32"),
        f32_flops=matmul_flops("float32", tf32=False),
        node_s=_node_s(),
    )


def matmul_flops(dtype: str, tf32: bool = True) -> float:
    """Of the product of two large matrices of random numbers."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = tf32
    best = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side, device="cuda", dtype=getattr(torch, dtype)) for _ in "ab")
        y = torch.empty_like(a)
        seconds = _least(lambda a=a, b=b, y=y: torch.matmul(a, b, out=y))  # type: ignore[misc]
        best = max(best, 2 * side**3 / seconds)
    return best


def _copied() -> float:
    import torch

    source = torch.randint(0, 256, (COPY_BYTES,), device="cuda", dtype=torch.uint8)
    copy = torch.empty_like(source)
    return 2 * COPY_BYTES / _least(lambda: copy.copy_(source))


def _node_s() -> float:
    import torch

    one = torch.zeros(1, device="cuda")

    def nodes() -> None:
        for _ in range(NODES):
            one.add_(1)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        one.add_(1)
        stream.synchronize()
        graph = Graph(stream.cuda_stream, nodes)
        return _least(graph.launch) / NODES


def _least(work: Callable[[], Any]) -> float:
    """The shortest time of many on PyTorch's stream, in seconds."""
    import torch

    watch = Stopwatch(torch.cuda.current_stream().cuda_stream)
    return min(watch.seconds(work) for _ in range(REPEAT))
