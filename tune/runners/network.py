"""Whole networks on a board, in the session that its candidates have. Runs in a worker."""

from __future__ import annotations

from pathlib import Path

from kernels.reference import Array
from tune.profile import Bursts, Calls, Trace, split
from tune.runners.session import IDLE_LIMIT_S, Place, session_at


def infer(
    place: Place, library: Path, image: Array, repeat: int, limit_s: int
) -> tuple[Array, tuple[float, ...]]:
    """Logits of a whole network for `image`, and seconds of `repeat` more inferences.

    limit_s  what each may take. Raises as `run` does.
    """
    from tvm.runtime.vm import VirtualMachine

    session = session_at(place)
    session.limit(limit_s)
    machine = VirtualMachine(session.load(library), session.device)
    machine.set_input("main", session.tensor(image))
    session.limit(limit_s)
    machine.invoke_stateful("main")
    logits = machine.get_outputs("main").numpy()
    seconds: tuple[float, ...] = ()
    if repeat:
        session.limit(limit_s * (1 + repeat))
        timer = machine.time_evaluator("invoke_stateful", session.device, number=1, repeat=repeat)
        seconds = tuple(float(second) for second in timer("main").results)
    session.limit(IDLE_LIMIT_S)
    return logits, seconds


def trace(place: Place, library: Path, images: Array, bursts: Bursts, limit_s: int) -> Trace:
    """As `profile.trace` does it here.

    limit_s  what an inference may take. Raises as `run` does.
    """
    from tvm.runtime.vm import VirtualMachine

    session = session_at(place)
    session.limit(limit_s)
    module = session.load(library)
    plain, traced = (VirtualMachine(module, session.device) for _ in range(2))
    session.trace(traced)
    for machine in (plain, traced):
        machine.set_input("main", session.tensor(images))
    # It runs one more than it times.
    plain_timer, traced_timer = (
        machine.time_evaluator(
            "invoke_stateful",
            session.device,
            number=1,
            repeat=bursts.warmup - 1 + bursts.timed,
        )
        for machine in (plain, traced)
    )
    inferences: list[float] = []
    kernels: list[Calls] = []
    for _ in range(bursts.rounds):
        session.limit(limit_s * 2 * (bursts.warmup + bursts.timed))
        inferences += plain_timer("main").results[bursts.warmup - 1 :]
        traced_timer("main")
        kernels += split(session.text("calls"), bursts)
    session.limit(IDLE_LIMIT_S)
    return Trace(inferences_s=tuple(inferences), kernels=tuple(kernels))
