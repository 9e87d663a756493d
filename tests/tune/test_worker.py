"""The worker: whatever a function does to its process, the caller gets an answer and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from tune.runners.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

LONG_S = 60.0


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One for all tests: each must leave it usable."""
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(autouse=True)
def _recovers(worker: Worker) -> Iterator[None]:
    yield
    assert worker.call(divmod, 17, 5, timeout_s=LONG_S) == (3, 2)


def raise_error(error: BaseException) -> None:
    raise error


def kill_self(number: int) -> None:
    os.kill(os.getpid(), number)


def hang() -> None:
    threading.Event().wait()


def hang_deaf() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    hang()


def unpicklable() -> Callable[[], None]:
    return lambda: None


def threads() -> int:
    import tvm

    return int(tvm.get_global_func("runtime.NumThreads")())


def left_behind() -> int:
    """Threads that NumPy starts for a product, which spin for a while when it is done."""
    before = psutil.Process().num_threads()
    square = np.ones((600, 600))
    assert (square @ square)[0, 0] == 600
    return psutil.Process().num_threads() - before


def print_much() -> str:
    print("noise " * 100_000)
    print("noise", file=sys.stderr)
    return "done"


def test_answers_with_what_the_function_returns(worker: Worker) -> None:
    assert worker.call(sorted, [3, 1, 2], timeout_s=LONG_S) == [1, 2, 3]
    assert worker.call(os.getpid, timeout_s=LONG_S) != os.getpid()


def test_keeps_its_process(worker: Worker) -> None:
    first, second = (worker.call(os.getpid, timeout_s=LONG_S) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("an odd shape"), "ValueError: an odd shape"),
        (KeyError(7), "KeyError: 7"),
        (AssertionError(), "AssertionError: "),
        (
            RuntimeError("a whole program\n  y = x\n\nno such loop\n\n"),
            "RuntimeError: no such loop",
        ),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 300),
    ],
    ids=["ValueError", "KeyError", "empty", "lines", "long"],
)
def test_error_is_told_in_one_line(worker: Worker, error: Exception, message: str) -> None:
    process = worker.call(os.getpid, timeout_s=LONG_S)
    with pytest.raises(WorkerError) as caught:
        worker.call(raise_error, error, timeout_s=LONG_S)
    assert str(caught.value) == message
    assert worker.call(os.getpid, timeout_s=LONG_S) == process


@pytest.mark.parametrize(
    ("function", "argument", "status"),
    [
        (os._exit, 0, 0),
        (os._exit, 7, 7),
        (raise_error, SystemExit(3), 3),
        (kill_self, signal.SIGSEGV, -signal.SIGSEGV),
        (kill_self, signal.SIGKILL, -signal.SIGKILL),
        (kill_self, signal.SIGABRT, -signal.SIGABRT),
    ],
    ids=["exit 0", "exit 7", "SystemExit", "SIGSEGV", "SIGKILL", "SIGABRT"],
)
def test_death_is_told_with_its_status(
    worker: Worker, function: Callable[..., Any], argument: Any, status: int
) -> None:
    with pytest.raises(WorkerCrash) as caught:
        worker.call(function, argument, timeout_s=LONG_S)
    assert str(caught.value) == f"worker process ended with status {status}"


def test_interrupt_is_for_whoever_asks(worker: Worker) -> None:
    """A terminal sends Ctrl-C to every process of a command."""
    process = worker.call(os.getpid, timeout_s=LONG_S)
    worker.call(kill_self, signal.SIGINT, timeout_s=LONG_S)
    assert worker.call(os.getpid, timeout_s=LONG_S) == process


def test_answer_that_cannot_be_sent(worker: Worker) -> None:
    with pytest.raises((WorkerCrash, WorkerError)):
        worker.call(unpicklable, timeout_s=LONG_S)


@pytest.mark.parametrize("function", [hang, hang_deaf])
def test_hanging_function_is_killed(worker: Worker, function: Callable[[], None]) -> None:
    process = psutil.Process(worker.call(os.getpid, timeout_s=LONG_S))
    with pytest.raises(WorkerTimeout) as caught:
        worker.call(function, timeout_s=0.5)
    assert str(caught.value) == "no answer after 0.5 s"
    assert not process.is_running()


def test_death_between_calls(worker: Worker) -> None:
    process = psutil.Process(worker.call(os.getpid, timeout_s=LONG_S))
    process.kill()
    process.wait(LONG_S)
    with pytest.raises(WorkerCrash, match="status -9"):
        worker.call(os.getpid, timeout_s=LONG_S)


def test_stop_ends_the_process_and_a_call_starts_another(worker: Worker) -> None:
    process = psutil.Process(worker.call(os.getpid, timeout_s=LONG_S))
    worker.stop()
    worker.stop()
    assert not process.is_running()
    assert worker.call(os.getpid, timeout_s=LONG_S) != process.pid


def test_noise_is_no_answer(worker: Worker) -> None:
    assert worker.call(print_much, timeout_s=LONG_S) == "done"


@pytest.mark.parametrize("count", [1, 2])
def test_runs_on_so_many_threads(count: int) -> None:
    worker = Worker(count)
    try:
        assert worker.call(threads, timeout_s=LONG_S) == count
    finally:
        worker.stop()


def test_nothing_runs_beside_what_is_timed(worker: Worker) -> None:
    assert worker.call(left_behind, timeout_s=LONG_S) == 0


def test_nothing_that_workers_are_forked_from_asks_for_a_gpu() -> None:
    """The question starts the CUDA driver, which a forked process cannot use."""
    code = (
        "import torch; asked = []\n"
        "torch.cuda.is_available = torch.cuda.device_count = lambda: asked.append('asked') or 0\n"
        "torch.cuda.init = torch.cuda._lazy_init = lambda: asked.append('started')\n"
        "import os\n"
        "import tune.runners.preload\n"
        "print(asked, {name for name in os.environ if name.startswith('TVM_FFI')})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONG_S
    )
    assert done.stdout == "[] set()\n"
