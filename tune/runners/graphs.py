"""Candidates on the GPU: compared with the reference, then timed as graphs. Runs in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from math import ceil
from statistics import median
from typing import Any, Protocol

import numpy as np

from kernels import kernel
from kernels.workload import Workload, moved_bytes
from targets import cuda_toolkit
from tune.cuda import Graph, Stopwatch, new_stream
from tune.runners.candidate import Candidate
from tune.runners.protocol import Outcome
from tune.runners.samples import in_turns, settled
from tune.verify import case, difference

MOST_COPIES = 512


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
    error = _Loaded(candidate).error
    return Outcome(config=candidate.config, error=error, checked=error is None)


def time_alone(candidate: Candidate, protocol: _Trial) -> Outcome:
    """Check a candidate and, when it is right, time it."""
    loaded = _Loaded(candidate)
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
    loaded = [_Loaded(rival) for rival in rivals]
    casts = {number: [one] for number, one in enumerate(loaded) if one.error is None}
    pair = [_Loaded(part) for part in apart]
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

    def __init__(self, candidate: Candidate) -> None:
        import tvm

        self.workload, self.shapes = candidate.workload, candidate.shapes
        _, weights, _ = case(self.workload)
        self.packed = kernel(candidate.kernel).pack(self.workload, candidate.config, weights)
        _stream()
        self.function = tvm.runtime.load_module(str(candidate.library))["main"]
        y = _tensor(np.full(self.shapes[-1], np.nan, self.workload.dtype))
        self._arguments = (_x(self.workload, self.shapes[0]), *map(_tensor, self.packed), y)
        self._output = self._run()
        wrong = difference(self.workload, self._output)
        self.error = f"wrong: {wrong}" if wrong else None

    def changed(self) -> str | None:
        """`wrong: …` when it computes something else by now, as those do whose threads race."""
        again = self._run()
        if np.array_equal(again.view(np.uint8), self._output.view(np.uint8)):
            return None
        wrong = difference(self.workload, again)
        return f"wrong: in a later run, {wrong}" if wrong else None

    def _run(self) -> np.ndarray[Any, Any]:
        """The output for the case, once the GPU has no more to do."""
        import tvm

        self.function(*self._arguments)
        tvm.cuda().sync(_stream())
        output: np.ndarray[Any, Any] = self._arguments[-1].numpy()
        return output


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
    """Functions and arguments; memory of their own, but for the first x, which is the case's."""
    import tvm

    first = cast[0]
    x = _x(first.workload, first.shapes[0])
    if number:  # the same random numbers in other places
        x = _tensor(np.roll(case(first.workload)[0], 97 * number).reshape(first.shapes[0]))
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    for loaded in cast:
        y = tvm.runtime.empty(loaded.shapes[-1], loaded.workload.dtype, tvm.cuda())
        calls.append(
            (loaded.function, (_shaped(x, loaded.shapes[0]), *map(_tensor, loaded.packed), y))
        )
        x = y
    return calls


@lru_cache(maxsize=4)
def _x(workload: Workload, shape: tuple[int, ...]) -> Any:
    """The input of the workload's case, in the GPU's memory."""
    return _tensor(case(workload)[0].reshape(shape))


def _shaped(tensor: Any, shape: tuple[int, ...]) -> Any:
    """The same memory under another shape."""
    return tensor if tuple(tensor.shape) == shape else tensor._create_view(shape)


def _tensor(array: np.ndarray[Any, Any]) -> Any:
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
