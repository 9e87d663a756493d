"""Measuring over RPC, on servers of this machine, and what every failure comes to."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from measuring import outcomes
from rpc_servers import HOST, Server, TrackerProcess, free_port

from kernels import kernel
from kernels.space import Config
from kernels.workload import Pointwise
from targets import arm64, x86
from targets.target import Endpoint
from tune.errors import SetupError, UsageError
from tune.mobilenet import Layer
from tune.pipeline import Log, Site, tune
from tune.pipeline.searches import FINALISTS
from tune.runners.board import Board, Patience
from tune.runners.builders import Builders
from tune.runners.candidate import Candidate
from tune.runners.guard import build_guard
from tune.runners.handshake import Direct, Tracker
from tune.runners.lanes import share
from tune.runners.protocol import Entry, Outcome
from tune.runners.rpc import RpcRunner, device_of, facts_at
from tune.runners.session import Turns
from tune.runners.worker import Worker, WorkerCrash

TARGET = x86.host()
WORKLOAD = Pointwise(N=1, H=7, W=7, Ci=32, Co=64)
KERNEL = "te.pointwise"
QUICK = Turns(repeat=2, most=2, min_repeat_s=0.002)
# Beside these, what a session takes to begin is short.
LONG = Turns(repeat=4, most=4, min_repeat_s=0.05)
PATIENCE = Patience(connect_s=10, run_s=20, transfer_s=20, away_s=60)
HURRY = Patience(connect_s=0.5, run_s=1, transfer_s=1, away_s=1)


def configs(count: int) -> list[Config]:
    found = list(islice(kernel(KERNEL).space(WORKLOAD, TARGET), count))
    assert len(found) == count
    return found


@pytest.fixture(scope="module")
def candidates() -> Iterator[list[Candidate]]:
    """Twelve that are built, each file for one use: a lane removes it."""
    builders = Builders(TARGET, 2)
    entries = [Entry(workload=WORKLOAD, kernel=KERNEL, config=config) for config in configs(12)]
    built = [one for one in builders.build(entries) if isinstance(one, Candidate)]
    assert len(built) == len(entries)
    yield built
    builders.stop()


@pytest.fixture
def fresh(candidates: list[Candidate], tmp_path: Path) -> list[Candidate]:
    return [with_library(one, copied(one.library, tmp_path)) for one in candidates]


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guard") / "guard.so"
    build_guard(TARGET, path)
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.kill()


@pytest.fixture
def listen() -> Iterator[Callable[..., Server]]:
    """Starts servers with options."""
    started: list[Server] = []

    def start(**options: object) -> Server:
        started.append(Server(**options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def tracker() -> Iterator[TrackerProcess]:
    one = TrackerProcess()
    yield one
    one.kill()


def copied(library: Path, folder: Path) -> Path:
    return Path(shutil.copy(library, folder / library.name))


def with_library(candidate: Candidate, library: Path) -> Candidate:
    return Candidate(
        workload=candidate.workload,
        kernel=candidate.kernel,
        config=candidate.config,
        library=library,
        shapes=candidate.shapes,
    )


def misbehaving(candidate: Candidate, body: str, folder: Path) -> Candidate:
    """The same, its function's body in C."""
    source, library = folder / "bad.c", folder / "bad.so"
    source.write_text(
        f"#include <unistd.h>\nint __tvm_ffi_main(void *a, void *b, int c, void *d) {{ {body} }}"
    )
    subprocess.run(["g++", "-x", "c", "-shared", "-fPIC", source, "-o", library], check=True)
    return with_library(candidate, library)


def shared(
    built: Sequence[Candidate],
    source: Direct | Tracker,
    guard: Path,
    *,
    boards: int = 1,
    turns: Turns = QUICK,
    patience: Patience = PATIENCE,
    notice: Callable[[str], None] = lambda line: None,
) -> Iterator[Outcome]:
    lanes = [Board(source, TARGET, guard, 1, patience, notice) for _ in range(boards)]
    found = share(iter(built), len(built), lanes, turns, away_s=patience.away_s, notice=notice)
    return (outcome for _, outcome in found)


def direct(server: Server, patience: Patience = PATIENCE) -> Direct:
    return Direct(server.endpoint, "", patience.connect_s)


def registered(tracker: TrackerProcess, count: int) -> Tracker:
    """The tracker, once that many servers have told it of themselves."""
    source = Tracker(tracker.endpoint, "pi", PATIENCE.connect_s)
    deadline = time.monotonic() + 30
    while source.boards() != count:
        assert time.monotonic() < deadline, "servers do not find the tracker"
    return source


def test_measures_what_the_command_line_serves() -> None:
    port = free_port()
    ports = ["--port", str(port), "--port-end", str(port + 1)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tvm.exec.rpc_server", "--host", HOST, *ports],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        endpoint = Endpoint(host=HOST, port=port)
        with RpcRunner(TARGET, endpoint, patience=Patience(connect_s=60), builders=2) as runner:
            assert runner.threads == runner.facts.cores
            assert runner.peak_flops("float32") > 1e9
            entries = [
                Entry(workload=WORKLOAD, kernel=KERNEL, config=config) for config in configs(3)
            ]
            found = list(outcomes(runner, WORKLOAD, KERNEL, configs(3)))
            finals = runner.compete([], entries)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert {str(outcome.config) for outcome in found} == {str(one) for one in configs(3)}
    for outcome in found:
        assert outcome.error is None
        assert outcome.checked
        assert len(outcome.seconds) == 5
        assert outcome.board == str(endpoint)
    assert [final.config for final in finals] == configs(3)
    assert all(len(final.seconds) == 15 and final.checked for final in finals)


def test_device_is_read_from_the_board(server: Server) -> None:
    facts = facts_at("x86", server.endpoint)
    assert device_of("x86", server.endpoint, facts) == TARGET
    assert facts.cores >= 1


def test_another_core_than_asked_for_is_said(server: Server) -> None:
    said: list[str] = []
    with RpcRunner(x86.DEVICES["x86-64-v3"], server.endpoint, notice=said.append) as runner:
        list(outcomes(runner, WORKLOAD, KERNEL, []))
    assert len(said) == 1
    assert f"is {TARGET.device}; expected x86-64-v3" in said[0]


def test_more_threads_than_cores_are_refused(server: Server) -> None:
    with pytest.raises(SetupError, match=r"has \d+ cores; expected 4096, .*--threads \d+"):
        RpcRunner(TARGET, server.endpoint, threads=4096)


@pytest.mark.parametrize("options", ["--port 9", "--port {port} --port-end {next}"])
def test_nothing_listens(options: str) -> None:
    """TVM's server takes no port from 9199 on unless it is told where to end."""
    port = 9 if options == "--port 9" else free_port()
    with pytest.raises(SetupError) as error:
        RpcRunner(TARGET, Endpoint(host=HOST, port=port), patience=HURRY)
    assert str(error.value) == (
        f"no device answers at {HOST}:{port} after 0.5 s; expected a tvm rpc server; start one: "
        f"python -m tvm.exec.rpc_server {options.format(port=port, next=port + 1)}"
    )


def test_host_that_is_not_known() -> None:
    with pytest.raises(SetupError, match=r"no machine is called 'no\.such\.host\.invalid'"):
        RpcRunner(TARGET, Endpoint(host="no.such.host.invalid", port=9090), patience=HURRY)


def test_web_server_listens() -> None:
    with http.server.ThreadingHTTPServer((HOST, 0), http.server.SimpleHTTPRequestHandler) as web:
        web.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        try:
            with pytest.raises(SetupError, match=r"answers b'.*'; expected a tvm rpc server or"):
                RpcRunner(TARGET, Endpoint(host=HOST, port=web.server_port), patience=HURRY)
        finally:
            web.shutdown()
            thread.join()


def test_listener_says_nothing() -> None:
    with socket.create_server((HOST, 0)) as mute:
        endpoint = Endpoint(host=HOST, port=mute.getsockname()[1])
        with pytest.raises(SetupError, match=r"says nothing after 0\.5 s; .* or start the server"):
            RpcRunner(TARGET, endpoint, patience=HURRY)


def test_server_of_another_key(listen: Callable[..., Server]) -> None:
    endpoint = listen(key="other").endpoint
    patience = Patience(connect_s=1)
    with pytest.raises(SetupError, match=r"begins no session .*choose another --rpc-key"):
        RpcRunner(TARGET, endpoint, patience=patience)
    with RpcRunner(TARGET, endpoint, key="other") as runner:
        assert runner.threads


@pytest.mark.skipif(arm64.linker() is None, reason="nothing links for aarch64")
def test_server_of_another_architecture(server: Server) -> None:
    with pytest.raises(SetupError, match=r"runs x86-64 code; expected aarch64; .*--target"):
        RpcRunner(arm64.DEVICES["cortex-a76"], server.endpoint)


def test_disk_is_full_at_the_start(listen: Callable[..., Server]) -> None:
    with pytest.raises(SetupError, match=r"cannot store \d+ bytes; expected room"):
        RpcRunner(TARGET, listen(file_bytes=4096).endpoint)


def test_disk_is_full_later(
    listen: Callable[..., Server], guard: Path, fresh: list[Candidate]
) -> None:
    room = guard.stat().st_size
    with fresh[0].library.open("ab") as file:
        file.truncate(room + 1)
    source = direct(listen(file_bytes=room))
    with pytest.raises(Exception, match=rf"cannot store {room + 1} bytes"):
        list(shared(fresh[:1], source, guard))


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("*(volatile int *)0 = 1; return 0;", "run: ended the board's session, 2 times"),
        ("__builtin_trap();", "run: ended the board's session, 2 times"),
        ("return main(0);", "run: ended the board's session, 2 times"),
        ("for (;;) pause();", "timeout: no answer in time on the board"),
        ("return 0;", "wrong: output (0, 0, 0, 0) is nan; "),
        ("return -1;", "run: "),
    ],
    ids=["segfault", "trap", "overflow", "hang", "nothing", "raises"],
)
def test_candidate_misbehaves(
    body: str, error: str, server: Server, guard: Path, fresh: list[Candidate], tmp_path: Path
) -> None:
    """The one after it is measured: the server has survived."""
    body = body.replace("main(0)", "__tvm_ffi_main(a, b, c, d) + c")
    bad = misbehaving(fresh[0], body, tmp_path)
    patience = Patience(run_s=2, away_s=5)
    first, second = shared([bad, fresh[1]], direct(server), guard, patience=patience)
    outcomes = {str(outcome.config): outcome for outcome in (first, second)}
    assert (outcomes[str(bad.config)].error or "").startswith(error)
    assert not outcomes[str(bad.config)].checked
    assert outcomes[str(fresh[1].config)].checked


def test_twenty_kills_cost_no_record(server: Server, tmp_path: Path) -> None:
    """The server is killed after each record, while the next candidate is under way."""
    log = Log(path=tmp_path / "log.jsonl")
    layers = [Layer(name="block.pointwise", workload=WORKLOAD)]
    site = Site(endpoint=server.endpoint, threads=1)
    seen = []
    for event in tune([layers], TARGET, log, site=site, trials=24, kernels=[KERNEL]):
        seen.append(event.record)
        if len(seen) <= 20:
            server.kill()
            server.start()
    assert log.records() == tuple(seen)
    trials = [record for record in seen if record.stage == "trial"]
    assert len({str(record.config) for record in trials}) == len(trials) == 24
    assert [record.error for record in seen if record.error] == []
    finals = [record for record in seen if record.stage == "final"]
    assert len(finals) == FINALISTS


def test_board_that_stays_away_ends_the_run(
    server: Server, guard: Path, fresh: list[Candidate]
) -> None:
    said: list[str] = []
    outcomes = shared(fresh, direct(server, HURRY), guard, patience=HURRY, notice=said.append)
    assert next(outcomes).checked
    server.kill()
    with pytest.raises(Exception, match=r"no device answers at .* after 1 s"):
        list(outcomes)
    assert said == [f"the board at {server.endpoint} was lost; it has 1 s to come back"]


def test_board_hangs(server: Server, guard: Path, fresh: list[Candidate]) -> None:
    outcomes = shared(fresh, direct(server, HURRY), guard, patience=HURRY)
    assert next(outcomes).checked
    server.signal(signal.SIGSTOP)
    with pytest.raises(Exception, match=r"(says nothing|no device answers).* after 1 s; expected"):
        list(outcomes)


def test_board_hangs_for_a_while(server: Server, guard: Path, fresh: list[Candidate]) -> None:
    patience = Patience(connect_s=0.5, run_s=1, transfer_s=1, away_s=60)
    outcomes = shared(
        fresh[:4],
        direct(server, patience),
        guard,
        patience=patience,
        notice=lambda line: server.signal(signal.SIGCONT),
    )
    found = [next(outcomes)]
    server.signal(signal.SIGSTOP)
    found += outcomes
    assert [one.error for one in found] == [None] * 4


def test_run_that_is_left_ends_at_once(server: Server) -> None:
    with RpcRunner(TARGET, server.endpoint, threads=1, builders=2) as runner:
        found = outcomes(runner, WORKLOAD, KERNEL, configs(12))
        next(found)
        found.close()  # type: ignore[attr-defined]
        server.kill()  # TVM's server ends when a session's connection is reset, as it may be here
        server.start()
        assert [one.error for one in outcomes(runner, WORKLOAD, KERNEL, configs(2))] == [None] * 2


def test_tracker_shares_work_among_boards(
    tracker: TrackerProcess,
    listen: Callable[..., Server],
    guard: Path,
    fresh: list[Candidate],
) -> None:
    for _ in range(3):
        listen(tracker=tracker.endpoint, key="pi")
    source = registered(tracker, 3)
    outcomes = list(shared(fresh, source, guard, boards=3, turns=LONG))
    assert all(one.checked for one in outcomes)
    assert len({one.board for one in outcomes}) == 3
    spans = [one.ran for one in outcomes if one.ran is not None]
    together = [sum(a <= began < b for a, b in spans) for began, _ in spans]
    assert max(together) == 3


def test_board_of_a_tracker_dies(
    tracker: TrackerProcess, listen: Callable[..., Server], guard: Path, fresh: list[Candidate]
) -> None:
    boards = {
        one.endpoint: one for one in (listen(tracker=tracker.endpoint, key="pi") for _ in "ab")
    }
    said: list[str] = []
    source = registered(tracker, 2)
    outcomes = shared(fresh, source, guard, boards=2, notice=said.append)
    first = next(outcomes)
    assert first.board is not None
    dead = Endpoint.parse(first.board)
    boards[dead].kill()
    found = [first, *outcomes]
    assert all(one.checked for one in found)
    assert len(found) == len(fresh)
    assert said == [f"the board at {dead} was lost; it has 60 s to come back"]
    assert source.boards() == 1


def test_runner_finds_boards_by_key(tracker: TrackerProcess, listen: Callable[..., Server]) -> None:
    with pytest.raises(UsageError, match=r"a tracker listens at .* of none; .*--rpc-key"):
        RpcRunner(TARGET, tracker.endpoint)
    for _ in range(2):
        listen(tracker=tracker.endpoint, key="pi")
    registered(tracker, 2)
    with pytest.raises(UsageError, match=r"expected one of pi; choose it with --rpc-key"):
        RpcRunner(TARGET, tracker.endpoint)
    with pytest.raises(SetupError, match=r"no board serves 'pie'.* expected one of pi; start one"):
        RpcRunner(TARGET, tracker.endpoint, key="pie")
    with RpcRunner(TARGET, tracker.endpoint, key="pi", threads=1, builders=2) as runner:
        assert all(one.checked for one in outcomes(runner, WORKLOAD, KERNEL, configs(8)))


def test_boards_keep_no_files(server: Server, guard: Path, fresh: list[Candidate]) -> None:
    """Nor do we: a library goes as soon as it is measured."""
    assert all(one.checked for one in shared(fresh, direct(server), guard))
    assert not any(one.library.exists() for one in fresh)


def test_worker_can_be_interrupted() -> None:
    worker = Worker()
    timer = threading.Timer(0.2, worker.interrupt)
    timer.start()
    with pytest.raises(WorkerCrash):
        worker.call(signal.pause, timeout_s=30)
    worker.stop()
    timer.join()
