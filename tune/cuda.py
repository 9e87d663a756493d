"""What of the CUDA runtime measures: events on a stream, and graphs of what was sent to one.

Called by its C interface, so that a time is taken in the same way whoever computes: TVM, PyTorch or
another library, each on a stream of its own. A stream is the number that its library knows it by;
0 is the default one, which waits for the others that do not say otherwise.

A launch takes the host several microseconds, as long as a small kernel takes the GPU. Whoever times
such kernels launches many as one graph, and reads two events around it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from targets import cuda_toolkit

DEFAULT_STREAM = 0
TO_DEVICE, WITHIN_DEVICE = 1, 3  # of the directions of a copy
RELAXED = 2  # a capture that minds no call of other libraries


class CudaError(RuntimeError):
    """A call failed. After a wrong access the process can use the GPU no more."""


class Stopwatch:
    """The GPU's time between two points of a stream."""

    def __init__(self, stream: int = DEFAULT_STREAM) -> None:
        self._stream = ctypes.c_void_p(stream)
        self._events = [ctypes.c_void_p() for _ in range(2)]
        for event in self._events:
            _call("cudaEventCreate", ctypes.byref(event))

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of what `work` sends to the stream, from an idle GPU until it is idle again."""
        start, end = self._events
        _call("cudaStreamSynchronize", self._stream)
        _call("cudaEventRecord", start, self._stream)
        work()
        _call("cudaEventRecord", end, self._stream)
        _call("cudaEventSynchronize", end)
        milliseconds = ctypes.c_float()
        _call("cudaEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value / 1e3


class Graph:
    """What `work` sends to `stream`, which is not the default one, to be launched as one.

    Work that loads code or takes memory has to have run before.
    """

    def __init__(self, stream: int, work: Callable[[], Any]) -> None:
        self._stream = ctypes.c_void_p(stream)
        graph, self._executable = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cudaStreamBeginCapture", self._stream, ctypes.c_int(RELAXED))
        try:
            work()
        except BaseException:
            with suppress(CudaError):
                _call("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
            raise
        _call("cudaStreamEndCapture", self._stream, ctypes.byref(graph))
        _call("cudaGraphInstantiate", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        _call("cudaGraphDestroy", graph)

    def launch(self) -> None:
        _call("cudaGraphLaunch", self._executable, self._stream)

    def release(self) -> None:
        _call("cudaGraphExecDestroy", self._executable)


def fill(stream: int, to: int, byte: int, size_bytes: int) -> None:
    """Let the stream set so many bytes of the GPU's memory, from the address `to` on."""
    size, handle = ctypes.c_size_t(size_bytes), ctypes.c_void_p(stream)
    _call("cudaMemsetAsync", ctypes.c_void_p(to), ctypes.c_int(byte), size, handle)


def copy(stream: int, to: int, source: int, size_bytes: int) -> None:
    """Let the stream copy so many bytes within the GPU's memory, between two addresses."""
    places = ctypes.c_void_p(to), ctypes.c_void_p(source)
    size, kind = ctypes.c_size_t(size_bytes), ctypes.c_int(WITHIN_DEVICE)
    _call("cudaMemcpyAsync", *places, size, kind, ctypes.c_void_p(stream))


def new_stream() -> int:
    """A stream that nothing else uses."""
    stream = ctypes.c_void_p()
    _call("cudaStreamCreate", ctypes.byref(stream))
    return stream.value or DEFAULT_STREAM


def _call(name: str, *arguments: Any) -> None:
    """CudaError, with the runtime's own words, unless the call succeeds."""
    runtime = _runtime()
    code = getattr(runtime, name)(*arguments)
    if code:
        describe = runtime.cudaGetErrorString
        describe.restype = ctypes.c_char_p
        words = (describe(code) or b"").decode(errors="replace")
        raise CudaError(f"{name}: error {code}, {words}")


@cache
def _runtime() -> ctypes.CDLL:
    """The library that this process has loaded, or else the toolkit's."""
    try:
        return ctypes.CDLL(cuda_toolkit.RUNTIME)
    except OSError:
        return ctypes.CDLL(cuda_toolkit.load().runtime)
