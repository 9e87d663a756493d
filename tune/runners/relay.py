"""What this machine's cores cost one another, by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from kernels.te import relay
from targets.target import Target
from tune.errors import GateError, SetupError
from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

VECTORS = 2048  # 128 KiB of AVX-512 a thread: two of them and what another wrote fit L2
REPEAT = 40
SAMPLE_S = 0.005
TIMEOUT_S = 60.0

# Seconds of a call that copies so many vectors on each of so many threads, of which each reads what
# the one so far behind it has written in the call before: (threads, vectors, turn) -> seconds.
Clock = Callable[[int, int, int], float]


def measure(target: Target, threads: int, cores_per_l3: int) -> dict[str, float]:
    """What `costs` finds on this machine. SetupError when its cores do not tell."""
    workers = {count: Worker(count) for count in (1, 2, min(threads, cores_per_l3), threads)}
    try:
        return costs(
            lambda count, vectors, turn: workers[count].call(
                _copy_s, target, count, vectors, turn, timeout_s=TIMEOUT_S
            ),
            threads,
            cores_per_l3,
            VECTORS * target.cpu.vector_bits // 8,
        )
    except (WorkerError, WorkerCrash, WorkerTimeout) as error:
        raise SetupError(
            f"the loop that tells what cores cost one another failed: {error}; expected its time; "
            f"try again while nothing else runs, or leave --probe out"
        ) from None
    finally:
        for worker in workers.values():
            worker.stop()


def costs(clock: Clock, threads: int, cores_per_l3: int, size_bytes: int) -> dict[str, float]:
    """Fields of `tune.multicore.Cores` for cores of which so many share an L3.

    size_bytes  of VECTORS vectors

    GateError when the clock tells nonsense.
    """
    near = min(threads, cores_per_l3)
    forked_s = {count: clock(count, 1, 0) for count in (1, near, threads)}
    extra_s = {
        "fork_join_s": (forked_s[near] - forked_s[1]) / (near - 1),
        "near_bytes_per_s": clock(2, VECTORS, 1) - clock(2, VECTORS, 0),
    }
    if threads > near:
        extra_s |= {
            "far_fork_join_s": (forked_s[threads] - forked_s[near]) / (threads - near),
            "far_bytes_per_s": clock(threads, VECTORS, near) - clock(threads, VECTORS, 0),
        }
    for name, seconds in extra_s.items():
        if seconds <= 0:
            raise GateError(
                f"threads that cost one another nothing: {name} is of {seconds * 1e6:.2g} µs; "
                f"expected more than none; try again while nothing else runs"
            )
    return {
        name: size_bytes / seconds if name.endswith("bytes_per_s") else seconds
        for name, seconds in extra_s.items()
    }


def _copy_s(target: Target, threads: int, vectors: int, turn: int) -> float:
    """The fastest of some samples of many calls. Runs in a worker."""
    import tvm

    lowered = relay.lower(target, threads, vectors, turn)
    copy = tvm.compile(lowered, target=target.tvm())["main"]
    zeros = np.zeros(relay.shape(target, threads, vectors), relay.DTYPE)
    x, y = (tvm.runtime.tensor(zeros) for _ in range(2))

    def sample_s(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            copy(x, y)
            copy(y, x)
        return (time.perf_counter() - start) / (2 * calls)

    calls = max(1, round(SAMPLE_S / sample_s(100) / 2))
    return min(sample_s(calls) for _ in range(REPEAT))
