"""Whole networks on a board, in the session that its candidates have. Runs in a worker."""

from __future__ import annotations

from pathlib import Path

from kernels.reference import Array
from tune.profile import Bursts, Watched
from tune.runners.session import IDLE_LIMIT_S, Place, session_at


def infer(
    place: Place, library: Path, image: Array, repeat: int, limit_s: int
) -> tuple[Array, tuple[float, ...]]:
    """Logits of a whole network for `image`, and seconds of `repeat` more inferences.

    Raises as `run` does.
    """
    from tvm.runtime.vm import VirtualMachine

    session = session_at(place)
    session.limit(limit_s)
    machine = VirtualMachine(session.load(library), session.device)
    machine.set_input("main", session.tensor(image))
    machine.invoke_stateful("main")
    logits = machine.get_outputs("main").numpy()
    seconds: tuple[float, ...] = ()
    if repeat:
        timer = machine.time_evaluator("invoke_stateful", session.device, number=1, repeat=repeat)
        seconds = tuple(float(second) for second in timer("main").results)
    session.limit(IDLE_LIMIT_S)
    return logits, seconds


def watch(place: Place, library: Path, image: Array, bursts: Bursts, limit_s: int) -> Watched:
    """As `profile.watch` does it here. Raises as `run` does."""
    from tvm.runtime.vm import VirtualMachine

    session = session_at(place)
    session.limit(limit_s)
    module = session.load(library)
    plain, watched = (VirtualMachine(module, session.device) for _ in range(2))
    session.watch(watched)
    for machine in (plain, watched):
        machine.set_input("main", session.tensor(image))
    timer = plain.time_evaluator("invoke_stateful", session.device, number=1, repeat=bursts.timed)
    whole: list[float] = []
    kernels: list[tuple[tuple[str, float], ...]] = []
    for _ in range(bursts.rounds):
        for _ in range(bursts.warmup):
            plain.invoke_stateful("main")
        whole += timer("main").results
        for _ in range(bursts.warmup + bursts.timed):
            watched.invoke_stateful("main")
            kernels.append(tuple(session.calls()))
        del kernels[-bursts.warmup - bursts.timed : -bursts.timed]
    session.limit(IDLE_LIMIT_S)
    return Watched(inferences_s=tuple(whole), kernels=tuple(kernels))
