"""The comparison itself, with contenders that misbehave in every way we know of."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tune import bench
from tune.bench import NO_TIME, Comparison, Rounds, compare
from tune.errors import GateError, SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.peers import GPU_PEERS, OURS, Job, Peer
from tune.peers.process import PeerFailed, PeerLate, environment
from tune.peers.worker import REST_LIMIT_S, rest
from tune.report.comparison import comparison_table, comparisons_table

MODEL = MobileNet(alpha=0.25, resolution=32, classes=5)
ROUNDS = Rounds(
    count=3,
    warmup=1,
    burst_s=0.02,
    prepare_timeout_s=20.0,
    burst_timeout_s=1.0,
)

# A contender whose logits are the first values of its input.
FAKE = """
import os, sys, time
import numpy as np

def version():
    return "1.2.3"

def prepare(job):
    {prepare}
    return Fake(job.model.classes)

class Fake:
    def __init__(self, classes):
        self.classes = classes
        self.calls = 0

    def bind(self, x):
        self.x = x.reshape(len(x), -1)

    def run(self):
        self.calls += 1
        {run}
        return self.x[:, : self.classes]

    def logits(self, y):
        return {logits}
"""
QUICK = "time.sleep(0.002)"
MISBEHAVIOURS = {
    "crashes-preparing": ({"prepare": "os.abort()"}, "SIGABRT"),
    "exits-preparing": ({"prepare": "print('no AVX-512'); os._exit(7)"}, "status 7: no AVX-512"),
    "raises-preparing": ({"prepare": "raise ValueError('odd shape')"}, "ValueError: odd shape"),
    "crashes-timed": ({"run": "self.calls < 3 or os.abort()"}, "SIGABRT"),
    "raises-timed": ({"run": "1 / (self.calls < 3)"}, "ZeroDivisionError"),
    "hangs-timed": ({"run": "self.calls < 3 or time.sleep(99)"}, "no answer to burst after 1 s"),
    "is-wrong": ({"logits": "y + 0.01"}, "off by 0.01"),
    "is-nan": ({"logits": "y * np.nan"}, "off by nan"),
    "has-another-shape": ({"logits": "y[:, 1:]"}, "shape (1, 4)"),
}


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fakes]:
    folder = tmp_path_factory.mktemp("fakes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield Fakes(folder)


class Fakes:
    """Peers whose modules are written on demand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, *, prepare: str = "pass", run: str = QUICK, logits: str = "y"
    ) -> Peer:
        module = f"fake_{name.replace('-', '_')}"
        text = FAKE.format(prepare=prepare, run=run, logits=logits)
        (self.folder / f"{module}.py").write_text(text)
        return Peer(module)

    def compare(self, peers: dict[str, Peer], **options: Any) -> Comparison:
        library = self.folder / "net.so"
        library.touch()
        arguments = {"threads": 1, "peak_flops": 1e11, "device": "a machine", "rounds": ROUNDS}
        reference = self("reference")
        return compare(
            options.pop("model", MODEL),
            {},
            library,
            peers=peers,
            **{"reference": reference, **arguments, **options},
        )


@pytest.fixture(scope="module")
def comparison(fakes: Fakes) -> Comparison:
    """Ours, a slower and a faster peer, a noisy one, and all who misbehave."""
    peers = {
        OURS: fakes("ours", run="time.sleep(0.004)"),
        "slow": fakes("slow", run="time.sleep(0.012)"),
        "fast": fakes("fast", run="time.sleep(0.001)"),
        "noisy": fakes("noisy", run="os.write(1, bytes(range(256))); print('hello')"),
        "not-installed": Peer("fake_fast", ("no_such_package",)),
        "has-no-module": Peer("fake_nothing"),
    }
    return fakes.compare(
        peers | {name: fakes(name, **parts) for name, (parts, _) in MISBEHAVIOURS.items()}
    )


def test_rows_come_from_the_fastest_and_are_relative_to_ours(comparison: Comparison) -> None:
    rows = {row.name: row for row in comparison.rows}
    assert [row.name for row in comparison.rows] == ["noisy", "fast", OURS, "slow"]
    assert rows[OURS].ratio_to_ours == 1.0
    assert rows["slow"].ratio_to_ours == rows["slow"].median_s / rows[OURS].median_s
    for name, slept_s in (("fast", 0.001), (OURS, 0.004), ("slow", 0.012)):
        assert slept_s <= rows[name].p20_s <= rows[name].median_s <= rows[name].p80_s
    assert rows["slow"].version == "1.2.3"
    assert rows["slow"].max_abs_diff == 0.0


@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_who_misbehaves_is_absent_with_the_reason(comparison: Comparison, name: str) -> None:
    reasons = {absent.name: absent.reason for absent in comparison.absent}
    assert MISBEHAVIOURS[name][1] in reasons[name]
    assert "\n" not in reasons[name]


def test_who_is_not_installed_is_absent(comparison: Comparison) -> None:
    reasons = {absent.name: absent.reason for absent in comparison.absent}
    assert "no_such_package is not installed" in reasons["not-installed"]
    assert "fake_nothing" in reasons["has-no-module"]


def test_hanging_while_preparing_is_cut_off(fakes: Fakes) -> None:
    hasty = Rounds(count=1, burst_s=0.001, prepare_timeout_s=3.0)
    peers = {OURS: fakes("ours"), "hangs": fakes("hangs", prepare="time.sleep(99)")}
    result = fakes.compare(peers, rounds=hasty)
    assert [row.name for row in result.rows] == [OURS]
    assert result.absent[0].reason == "no answer to load after 3 s"


@pytest.mark.parametrize("name", ["crashes-preparing", "hangs-timed", "is-wrong", "is-nan"])
def test_our_own_failure_is_fatal(fakes: Fakes, name: str) -> None:
    parts, reason = MISBEHAVIOURS[name]
    with pytest.raises(GateError) as caught:
        fakes.compare({OURS: fakes(name, **parts)})
    assert reason in str(caught.value)


def test_without_a_reference_nothing_is_compared(fakes: Fakes) -> None:
    with pytest.raises(SetupError, match="odd shape"):
        fakes.compare({}, reference=fakes("bad", prepare="raise ValueError('odd shape')"))


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    options: dict[str, Any] = {"threads": 1, "peak_flops": 1e11, "device": "a machine"}
    with pytest.raises(UsageError, match=r"no library at .*missing\.so"):
        compare(MODEL, {}, tmp_path / "missing.so", **options)


def test_who_is_not_set_up_for_the_dtype_is_absent(fakes: Fakes) -> None:
    half = MobileNet(alpha=0.25, resolution=32, classes=5, dtype="float16")
    ours, both = (fakes(name)._replace(dtypes=("float32", "float16")) for name in ("ours", "both"))
    result = fakes.compare({OURS: ours, "both": both, "single": fakes("single")}, model=half)
    assert {row.name for row in result.rows} == {OURS, "both"}
    [absent] = result.absent
    assert (absent.name, absent.reason) == (
        "single",
        "it is not set up for float16; expected float32",
    )


def test_no_process_outlives_the_comparison(comparison: Comparison) -> None:
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [command for command in commands if "tune.peers.worker" in command]


def test_what_is_stored(comparison: Comparison) -> None:
    stored = json.loads(json.dumps(asdict(comparison)))
    assert set(stored) == {
        "workload",
        "threads",
        "peak_gflops",
        "floor_s",
        "load_average",
        "device",
        "rows",
        "absent",
    }
    assert stored["workload"] == "mobilenet_v1 alpha=0.25 32x32 batch=1 float32 tf"
    assert stored["peak_gflops"] == 100.0
    assert stored["floor_s"] == pytest.approx(2 * MODEL.macs / 1e11)
    assert stored["device"] == "a machine"
    assert set(stored["rows"][0]) == {
        "name",
        "version",
        "median_s",
        "p20_s",
        "p80_s",
        "max_abs_diff",
        "ratio_to_ours",
    }
    assert set(stored["absent"][0]) == {"name", "reason"}


def test_percentiles() -> None:
    assert bench.percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)
    assert bench.percentiles([7.0]) == (7.0, 7.0, 7.0)


def test_the_first_of_a_round_is_the_last_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, *_: Any, timeout_s: float) -> list[float]:
            order.append(self.name)
            return [1.0]

    entrants = [bench._Entrant(name=name, process=Recorder(name)) for name in "abc"]  # type: ignore[arg-type]
    bench._race(entrants, ROUNDS, lambda: math.inf, lambda _: None)
    assert "".join(order) == "abcbcacab"
    assert [len(entrant.samples) for entrant in entrants] == [3, 3, 3]


class Clock:
    """One that stands still until it is set."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, _: float) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


def slow_ones(fakes: Fakes, *names: str) -> dict[str, Peer]:
    return {name: fakes(name)._replace(slow=True) for name in names}


def test_where_time_is_short_slow_ones_join_a_second_meeting(fakes: Fakes, clock: Clock) -> None:
    kept: list[Comparison] = []
    peers = slow_ones(fakes, "slow") | {OURS: fakes("ours"), "fast": fakes("fast")}
    result = fakes.compare(peers, deadline=1e3, keep=kept.append)
    first, second = kept
    assert {row.name for row in first.rows} == {OURS, "fast"}
    assert [(each.name, each.reason) for each in first.absent] == [("slow", NO_TIME)]
    assert {row.name for row in second.rows} == {OURS, "fast", "slow"}
    assert second == result
    kept.clear()
    fakes.compare(peers, keep=kept.append)
    assert len(kept) == 1  # with time enough all meet at once


def test_who_does_not_fit_in_is_absent_and_nobody_waits_for_it(fakes: Fakes, clock: Clock) -> None:
    def tell(line: str) -> None:
        if line == "preparing second":
            clock.now_s = 1e3 - ROUNDS.about_s(3) / 2  # too few for the rounds

    peers = {OURS: fakes("ours")} | slow_ones(fakes, "first", "second", "third")
    result = fakes.compare(peers, deadline=1e3, progress=tell)
    assert {row.name for row in result.rows} == {OURS, "first"}
    assert [(a.name, a.reason) for a in result.absent] == [("second", NO_TIME), ("third", NO_TIME)]


@pytest.mark.parametrize(
    ("left_s", "asked_s", "reason"),
    [(9.0, 9.0, f"{NO_TIME}: too late"), (math.inf, 20.0, "too late"), (0.0, None, NO_TIME)],
)
def test_nobody_is_waited_for_longer_than_there_is_time(
    left_s: float, asked_s: float | None, reason: str
) -> None:
    asked: list[float] = []

    class Late:
        def tell(self, *_: Any) -> None:
            pass

        def answer(self, timeout_s: float) -> None:
            asked.append(timeout_s)
            raise PeerLate("too late")

        def close(self) -> None:
            pass

    job = Job.at_random(MODEL, {}, threads=1, seed=0)
    one, two = (bench._Entrant(name="late", process=Late()) for _ in range(2))  # type: ignore[arg-type]
    limits = (ROUNDS.prepare_timeout_s, left_s)
    bench._load({one: Peer("late")}, job, *limits, meanwhile=lambda: None)
    assert one.failure == reason
    with pytest.raises(PeerFailed) as caught:
        bench._prepare(two, job, np.zeros(1), *limits)
    assert str(caught.value) == reason
    assert asked == ([] if asked_s is None else [asked_s] * 2)


def test_on_a_gpu_all_load_at_once_and_each_has_it_alone_to_choose_by_the_clock(
    fakes: Fakes, tmp_path: Path
) -> None:
    """Each loads until all do; the first call of one finds none of another."""
    names = [OURS, "one", "two"]
    alone = tmp_path / "alone"
    parts = {
        name: {
            "prepare": f"""
    open(r"{tmp_path / name}", "x").close()
    while not all(os.path.exists(os.path.join(r"{tmp_path}", other)) for other in {names}):
        time.sleep(0.01)
""",
            "run": f"""
        if self.calls == 1:
            os.mkdir(r"{alone}")
            time.sleep(0.1)
            os.rmdir(r"{alone}")
        time.sleep(0.002)
""",
        }
        for name in names
    }
    peers = {name: fakes(f"side-by-side-{name}", **parts[name]) for name in names}
    told: list[str] = []
    bad = {"unfit": fakes("unfit", **MISBEHAVIOURS["crashes-preparing"][0])}
    result = fakes.compare(peers | bad, place="cuda", progress=told.append)
    assert {row.name for row in result.rows} == set(names)
    [absent] = result.absent
    assert absent.name == "unfit"
    assert "SIGABRT" in absent.reason
    assert told[:3] == [
        f"loading {OURS}, one, two, unfit",
        "computing what is expected",
        f"preparing {OURS}",
    ]


def test_who_has_loaded_is_not_late_because_another_was_waited_for(fakes: Fakes) -> None:
    hasty = Rounds(count=1, burst_s=0.001, prepare_timeout_s=4.0)
    hangs = {"hangs": fakes("hangs", prepare="time.sleep(99)")}
    result = fakes.compare(
        {OURS: fakes("ours")} | hangs | {"last": fakes("last")}, rounds=hasty, place="cuda"
    )
    assert {row.name for row in result.rows} == {OURS, "last"}
    assert [each.reason for each in result.absent] == ["no answer to load after 4 s"]


def test_our_own_failure_ends_the_loading_of_others(fakes: Fakes) -> None:
    parts, reason = MISBEHAVIOURS["crashes-preparing"]
    peers = {OURS: fakes("crashes", **parts), "hangs": fakes("hangs", prepare="time.sleep(99)")}
    with pytest.raises(GateError, match=reason):
        fakes.compare(peers, place="cuda")


def test_no_round_begins_when_the_time_is_up_but_the_first() -> None:
    class Once:
        def ask(self, *_: Any, timeout_s: float) -> list[float]:
            return [1.0]

    entrant = bench._Entrant(name="once", process=Once(), samples=[9.0])  # type: ignore[arg-type]
    bench._race([entrant], ROUNDS, lambda: -1.0, lambda _: None)
    assert entrant.samples == [1.0]


def test_who_takes_longest_to_be_ready_is_asked_last() -> None:
    slow = [peer.slow for peer in GPU_PEERS.values()]
    assert slow == sorted(slow)
    assert list(GPU_PEERS)[-1] == "torch-max-autotune"


def test_pools_are_sized_and_otherwise_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("KMP_BLOCKTIME", "0")
    given = environment(threads=2)
    assert given["OMP_NUM_THREADS"] == given["MKL_NUM_THREADS"] == given["TVM_NUM_THREADS"] == "2"
    assert not {"OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & set(given)


def test_the_table_is_aligned_and_complete() -> None:
    row = {
        "name": "ncnn",
        "version": "1.0",
        "median_s": 0.01225,
        "p20_s": 0.012,
        "p80_s": 0.013,
        "max_abs_diff": 2.5e-6,
        "ratio_to_ours": 1.114,
    }
    ours = row | {"name": "septune", "median_s": 0.011, "ratio_to_ours": 1.0}
    table = comparison_table(
        {
            "workload": "mobilenet_v1 alpha=1.0 224x224 batch=1 float32 tf",
            "threads": 1,
            "peak_gflops": 115.04,
            "floor_s": 0.0099,
            "load_average": 0.5,
            "device": "x86 sapphirerapids",
            "rows": [ours, row],
            "absent": [{"name": "openvino", "reason": "openvino is not installed"}],
        }
    )
    conditions, blank, header, first, second, absent = table.splitlines()
    assert conditions == (
        "mobilenet_v1 alpha=1.0 224x224 batch=1 float32 tf, 1 thread, x86 sapphirerapids, "
        "peak 115.0 GFLOP/s, floor 9.90 ms, load average 0.50"
    )
    assert blank == ""
    assert len(header) == len(first) == len(second)
    assert first.split() == ["septune", "1.0", "11.00", "12.00", "13.00", "1.00", "90%", "2.5e-06"]
    assert second.split() == ["ncnn", "1.0", "12.25", "12.00", "13.00", "1.11", "81%", "2.5e-06"]
    assert absent == "absent: openvino: openvino is not installed"


def test_several_networks_are_a_line_each() -> None:
    def row(name: str, median_s: float, ratio: float) -> dict[str, Any]:
        return {"name": name, "median_s": median_s, "ratio_to_ours": ratio}

    ours, rows = row("septune", 1e-3, 1.0), [row("ncnn", 1.3e-3, 1.3), row("openvino", 9e-4, 0.9)]
    small = {"workload": "small", "floor_s": 8e-4, "rows": [rows[1], ours, rows[0]]}
    alone = {"workload": "alone", "floor_s": 5e-4, "rows": [ours]}
    head, *lines = comparisons_table([small, alone]).splitlines()
    assert head.split() == [
        "network",
        "floor,",
        "ms",
        "ours",
        "%",
        "of",
        "floor",
        "best",
        "peer",
        "its",
        "×",
        "ours",
    ]
    assert [line.split() for line in lines] == [
        ["small", "0.800", "1.000", "80%", "openvino", "0.900", "0.90"],
        ["alone", "0.500", "1.000", "50%", "none"],
    ]


def test_a_burst_ends_when_its_threads_sleep() -> None:
    def spin() -> None:
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            pass

    start = time.monotonic()
    rest()
    assert time.monotonic() - start < REST_LIMIT_S / 2
    spinning = threading.Thread(target=spin)
    spinning.start()
    rest()
    assert not spinning.is_alive()
