"""Candidates on the GPU: compared with the reference, then timed as graphs. Runs in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from math import ceil, prod
from statistics import median
from typing import Any, Protocol

import numpy as np

from kernels import kernel
from kernels.reference import Array
from kernels.workload import ITEM_BYTES, Workload, moved_bytes
from targets import cuda_toolkit
from tune.cuda import Graph, Stopwatch, copy, fill, new_stream
from tune.runners.candidate import Candidate
from tune.runners.protocol import Outcome
from tune.runners.samples import in_turns, settled
from tune.verify import difference, few

MOST_COPIES = 512
NAN_BYTE = 0xFF  # of which a NaN can consist, whatever float it is
POISONED = 997  # every so manieth number


class _Pace(Protocol):
    """How long a graph and a sample of it are at least."""

    @property
    def launches(self) -> int: ...
    @property
    def min_repeat_s(self) -> float: ...


class _Trial(_Pace, Protocol):
    @property
    def repeat(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def rotate_bytes(self) -> int: ...


class _Turns(_Pace, Protocol):
    @property
    def rounds(self) -> int: ...
    @property
    def most(self) -> int: ...


def check(candidate: Candidate) -> Outcome:
    """Whether the candidate computes what the reference computes; no time."""
    error = _Loaded(candidate, _kept(candidate.workload)).error
    return Outcome(config=candidate.config, error=error, checked=error is None)


def time_alone(candidate: Candidate, protocol: _Trial) -> Outcome:
    """Check a candidate and, when it is right, time it."""
    loaded = _Loaded(candidate, _kept(candidate.workload))
    if loaded.error is not None:
        return Outcome(config=candidate.config, error=loaded.error)
    timed = _Timed([loaded], protocol.rotate_bytes, protocol)

    def samples() -> tuple[float, ...]:
        return tuple(timed.sample() for _ in range(protocol.repeat))

    seconds = settled(samples, protocol.attempts)
    timed.release()
    if wrong := loaded.changed():
        return Outcome(config=candidate.config, error=wrong)
    return Outcome(config=candidate.config, seconds=seconds, checked=True)


def time_in_turns(
    rivals: Sequence[Candidate], apart: Sequence[Candidate], touched_bytes: int, turns: _Turns
) -> list[Outcome]:
    """One outcome a rival, in their order.

    apart          two candidates, one behind the other, that take turns with rivals for both in
                   one; none otherwise
    touched_bytes  the memory that copies fill
    """
    _kept.cache_clear()
    loaded = [_Loaded(rival, _Copies(rival.workload)) for rival in rivals]
    casts = {number: [one] for number, one in enumerate(loaded) if one.error is None}
    pair = [_Loaded(part, _Copies(part.workload)) for part in apart]
    if pair and all(part.error is None for part in pair):
        casts[-1] = pair
    timed = {number: _Timed(cast, touched_bytes, turns) for number, cast in casts.items()}
    fastest = in_turns(
        timed, lambda number: timed[number].sample(), rounds=turns.rounds, most=turns.most
    )
    for played in timed.values():
        played.release()
    outcomes = []
    for number, (rival, ready) in enumerate(zip(rivals, loaded, strict=True)):
        error = ready.error or ready.changed()
        right = error is None
        outcomes.append(
            Outcome(
                config=rival.config,
                seconds=fastest[number] if right else (),
                apart_s=median(fastest[-1]) if right and -1 in fastest else None,
                error=error,
                checked=right,
            )
        )
    return outcomes


class _Loaded:
    """A candidate's function, and whether it gave the right output for its case.

    error  None, or `wrong: …`
    """

    def __init__(self, candidate: Candidate, copies: _Copies) -> None:
        """`copies`, of its workload, are what it is timed on."""
        import tvm

        self.workload, self.shapes, self.copies = candidate.workload, candidate.shapes, copies
        _, weights, y = few(self.workload)
        self.packed = kernel(candidate.kernel).pack(self.workload, candidate.config, weights)
        _stream()
        self.function = tvm.runtime.load_module(str(candidate.library))["main"]
        self._y = copies.unwritten(self.shapes[-1])
        # Weights of its own: what a wrong candidate wrote elsewhere makes no other one wrong.
        self._arguments = (copies.x(0, self.shapes[0]), *map(_tensor, self.packed), self._y)
        output = self._run()
        self._first = output.reshape(-1)[: y.size].reshape(y.shape).copy()
        self.error = self._judged("wrong: ", output)

    def changed(self) -> str | None:
        """`wrong: …` when it computes something else by now, as those do whose threads race."""
        return self._judged("wrong: in a later run, ", self._run(), self._first)

    def _judged(self, prefix: str, output: Array, known: Array | None = None) -> str | None:
        wrong = difference(self.workload, output, known)
        if wrong is None:
            return None
        _kept.cache_clear()  # where it may have written, too
        _x.cache_clear()
        return prefix + wrong

    def _run(self) -> Array:
        """The output for the case, once the GPU has no more to do; good until the next one."""
        import tvm

        self.function(*self._arguments)
        tvm.cuda().sync(_stream())
        output, host = _host(self.shapes[-1], self.workload.dtype)
        output.reshape(-1)[::POISONED] = np.nan  # of the last one; what does not come is not right
        self._y.copyto(host)
        tvm.cuda().sync(_stream())
        return output


class _Copies:
    """A workload's tensors in the GPU's memory, each as often as a rotation needs it.

    Weights alone depend on the candidate: only those that were asked for last are there.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._x: list[Any] = []
        self._y: list[Any] = []
        self._weights: list[tuple[Any, ...]] = []
        self._packed: tuple[Array, ...] = ()
        self._checked: Any = None

    def x(self, number: int, shape: tuple[int, ...]) -> Any:
        """The case's; from the second on, the same random numbers in other places."""
        while len(self._x) <= number:
            place = len(self._x)
            self._x.append(_rolled(self._workload, place) if place else _x(self._workload))
        return _shaped(self._x[number], shape)

    def weights(self, number: int, packed: tuple[Array, ...]) -> tuple[Any, ...]:
        if not _same(packed, self._packed):
            self._packed, self._weights = packed, []
        while len(self._weights) <= number:
            self._weights.append(tuple(map(_tensor, packed)))
        return self._weights[number]

    def y(self, number: int, shape: tuple[int, ...]) -> Any:
        while len(self._y) <= number:
            self._y.append(_empty(shape, self._workload.dtype))
        return _shaped(self._y[number], shape)

    def unwritten(self, shape: tuple[int, ...]) -> Any:
        """Another y, which is NaN all through."""
        if self._checked is None:
            self._checked = _empty(shape, self._workload.dtype)
        size_bytes = prod(shape) * ITEM_BYTES[self._workload.dtype]
        fill(_stream(), self._checked.data_ptr(), NAN_BYTE, size_bytes)
        return _shaped(self._checked, shape)


@lru_cache(maxsize=1)
def _kept(workload: Workload) -> _Copies:
    """Of the last workload, most of whose candidates come one behind the other."""
    return _Copies(workload)


class _Timed:
    """A graph of launches of candidates, one behind the other, on rotating copies.

    A candidate reads what the one before it wrote.
    """

    def __init__(self, cast: Sequence[_Loaded], rotate_bytes: int, pace: _Pace) -> None:
        each = sum(moved_bytes(loaded.workload) for loaded in cast)
        copies = min(MOST_COPIES, 1 + rotate_bytes // each)
        rotation = [_chain(cast, number) for number in range(copies)]
        self._launches = copies * ceil(pace.launches / copies)

        def launch_all() -> None:
            for number in range(self._launches):
                for function, arguments in rotation[number % copies]:
                    function(*arguments)

        launch_all()
        self._rotation = rotation  # what the graph's launches point to
        self._graph = Graph(_stream(), launch_all)
        self._watch = Stopwatch(_stream())
        self._turns = 1
        self.sample()
        self._turns = max(1, ceil(pace.min_repeat_s / (self.sample() * self._launches)))

    def sample(self) -> float:
        """Mean seconds of the candidates together."""
        took_s = self._watch.seconds(self._launch)
        return took_s / (self._turns * self._launches)

    def release(self) -> None:
        self._graph.release()
        self._rotation.clear()

    def _launch(self) -> None:
        for _ in range(self._turns):
            self._graph.launch()


def _chain(cast: Sequence[_Loaded], number: int) -> list[tuple[Any, tuple[Any, ...]]]:
    """Functions and arguments, the copies of that number."""
    x = cast[0].copies.x(number, cast[0].shapes[0])
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    for loaded in cast:
        y = loaded.copies.y(number, loaded.shapes[-1])
        weights = loaded.copies.weights(number, loaded.packed)
        calls.append((loaded.function, (_shaped(x, loaded.shapes[0]), *weights, y)))
        x = y
    return calls


@lru_cache(maxsize=4)
def _x(workload: Workload) -> Any:
    """The input of the workload's case, in the GPU's memory."""
    return _rolled(workload, 0)


def _rolled(workload: Workload, places: int) -> Any:
    """The same, its images moved by so many places, in memory of its own.

    The host has a few images, which the GPU repeats.
    """
    import tvm

    images = np.roll(few(workload)[0], 97 * places)
    some, count = _tensor(images), len(images)
    if count == workload.N:
        return some
    whole = _empty(workload.x_shape, workload.dtype)
    image_bytes = prod(workload.x_shape[1:]) * ITEM_BYTES[workload.dtype]
    for first in range(0, workload.N, count):
        size_bytes = image_bytes * min(count, workload.N - first)
        copy(_stream(), whole.data_ptr() + image_bytes * first, some.data_ptr(), size_bytes)
    tvm.cuda().sync(_stream())  # before `some` is gone
    return whole


@lru_cache(maxsize=1)
def _host(shape: tuple[int, ...], dtype: str) -> tuple[Array, Any]:
    """Memory of the host for one output after the other, as NumPy and as TVM know it."""
    import tvm

    tensor = tvm.runtime.empty(shape, dtype)
    return np.from_dlpack(tensor), tensor


def _same(packed: Sequence[Array], other: Sequence[Array]) -> bool:
    return len(packed) == len(other) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(packed, other, strict=True)
    )


def _empty(shape: tuple[int, ...], dtype: str) -> Any:
    import tvm

    return tvm.runtime.empty(shape, dtype, tvm.cuda())


def _shaped(tensor: Any, shape: tuple[int, ...]) -> Any:
    """The same memory under another shape."""
    return tensor if tuple(tensor.shape) == shape else tensor._create_view(shape)


def _tensor(array: Array) -> Any:
    import tvm

    return tvm.runtime.tensor(np.ascontiguousarray(array), tvm.cuda())


@cache
def _stream() -> int:
    """A stream that this process's candidates run on; not the default one, which has no graphs."""
    import tvm
    from tvm_ffi import use_raw_stream

    cuda_toolkit.load()
    tvm.cuda().sync()
    handle = new_stream()
    use_raw_stream(tvm.cuda(), handle).__enter__()
    return handle
