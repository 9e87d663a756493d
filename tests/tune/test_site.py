"""Where code is measured, on how many threads, and what is refused there."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from targets import machines
from tune import cli, database
from tune.cli.nouns import Place, place_of
from tune.cli.parser import parser
from tune.database import Record
from tune.errors import SetupError, UsageError
from tune.pipeline import Log, Site, threads_of
from tune.pipeline.site import runner_at
from tune.runners import local, rpc
from tune.runners.session import Facts

X86, ARM = machines("x86"), machines("arm64")
HOST = X86.host()
A76 = ARM.DEVICES["cortex-a76"]


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (X86, ARM):
        monkeypatch.setattr(kind, "cores", lambda: 8)


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Log]:
    """A log with a record of a cortex-a76 for each (threads, estimator)."""

    def of(*made: tuple[int, str | None]) -> Log:
        path = tmp_path / "log.jsonl"
        records = [
            Record(
                workload="depthwise/f32/n1.h7.w7.c8.k3.s1.p1-1-1-1/relu6",
                kernel="te.neon",
                kernel_version="1",
                config={},
                target="arm64",
                device=A76.device,
                threads=threads,
                stage="trial",
                seconds=(1e-4,),
                error=None,
                checked=True,
                estimator=estimator,
                tvm="0.27.0",
                when="2026-01-01T00:00:00+00:00",
            )
            for threads, estimator in made
        ]
        database.append(path, records)
        return Log(path=path)

    return of


def threads(target: Any, log: Log, **said: Any) -> int:
    nothing: dict[str, Any] = dict.fromkeys(("asked", "board", "estimator"))
    return threads_of(target, log, **nothing | {"measures": False} | said)


def test_this_machine_computes_on_all_its_cores(log: Callable[..., Log]) -> None:
    assert threads(HOST, log()) == 8
    assert threads(HOST, log(), asked=3) == 3
    assert threads(A76, log(), measures=True) == 8


def test_a_board_computes_on_all_of_its_own(log: Callable[..., Log]) -> None:
    assert threads(A76, log(), board=4, measures=True) == 4
    assert threads(A76, log((2, None)), board=4) == 4
    assert threads(A76, log(), board=4, asked=2) == 2


def test_an_estimate_and_the_host_of_a_gpu_have_one(log: Callable[..., Log]) -> None:
    assert threads(A76, log(), estimator="instructions", asked=4, measures=True) == 1
    assert threads(machines("cuda").DEVICES["h100"], log(), asked=4) == 1


@pytest.mark.parametrize(
    ("made", "count"),
    [
        ([(4, None)], 4),
        ([(4, None), (4, None), (1, "instructions")], 4),
        ([(1, "instructions"), (1, "mca")], 1),
    ],
)
def test_a_machine_elsewhere_computes_on_as_many_as_its_records_have(
    made: list[tuple[int, str | None]], count: int, log: Callable[..., Log]
) -> None:
    assert threads(A76, log(*made)) == count


@pytest.mark.parametrize(
    ("made", "has"), [([(4, None), (2, None)], "records of 2 and 4 threads"), ([], "no records")]
)
def test_a_machine_elsewhere_whose_records_do_not_tell(
    made: list[tuple[int, str | None]], has: str, log: Callable[..., Log]
) -> None:
    with pytest.raises(UsageError, match=rf"no cortex-a76, whose log .* has {has}; .*--threads N"):
        threads(A76, log(*made))


def place(*words: str) -> Place:
    options = parser().parse_args(list(words))
    return place_of(options, measures=words[0] in ("run", "bench", "verify"))


@pytest.mark.parametrize("verb", ["run", "bench", "verify", "build -o net.so", "log check"])
def test_every_verb_asks_the_board_once(
    verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def facts_at(kind: str, endpoint: object, *, key: str) -> Facts:
        asked.append(kind)
        return Facts(cpuinfo="CPU implementer : 0x41\nCPU part : 0xd0b\n", cores=4)

    monkeypatch.setattr(rpc, "facts_at", facts_at)
    words = [*verb.split(), "--target", "arm64", "--rpc", "pi:9090", "--log", str(tmp_path / "no")]
    found = place(*words)
    assert (found.target, found.site.threads, len(asked)) == (A76, 4, 1)
    assert place(*words, "--device", "cortex-a53").site.threads == 4
    assert place(*words, "--threads", "2").site.threads == 2
    assert place(*words, "--device", "cortex-a53", "--threads", "2").site.threads == 2
    assert len(asked) == 3


def test_code_for_another_machine_is_not_for_the_cores_of_this_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["build", "--target", "arm64", "--device", "cortex-a53", "-o", str(tmp_path / "a.so")]
    assert cli.main([*words, "--log", str(tmp_path / "none.jsonl")]) == 2
    assert "pass --threads N" in capsys.readouterr().err
    for verb in (["build", "-o", "a.so"], ["explain"], ["log", "check"]):
        assert place(*verb, "--target", "arm64", "--device", "cortex-a76").site.threads == 1


@pytest.mark.parametrize(("machine", "kind"), [("aarch64", "arm64"), ("x86_64", "x86")])
def test_code_is_for_this_kind_of_machine_by_default(
    machine: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert parser().parse_args(["run"]).target == kind


def test_another_device_than_this_machine_is_said() -> None:
    said: list[str] = []
    other = replace(HOST, device="another", mcpu="another")
    for target in (HOST, other):
        with runner_at(Site(notice=said.append), target):
            pass
    assert len(said) == 1
    assert f"is {HOST.device}; expected another, which records will name" in said[0]


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(UsageError, match=r"threads are 9; expected at most 8, .*--threads 8"):
        runner_at(Site(threads=9), HOST)


@pytest.mark.parametrize("ask", ["peak_flops", "memory_bytes_per_s"])
def test_a_machine_whose_speed_cannot_be_told(ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RUN_TIMEOUT_S", 0.0)

    def asked() -> None:
        with runner_at(Site(), HOST) as runner:
            getattr(runner, ask)(*(["float32"] if ask == "peak_flops" else []))

    with pytest.raises(SetupError, match=r"own speed failed: .*; expected its time; try again"):
        asked()


@pytest.mark.parametrize("verb", ["run", "verify"])
@pytest.mark.parametrize(
    ("estimator", "where", "told"),
    [
        ("instructions", [], "judges code for arm64, not for x86; expected none; "),
        ("mca", ["--target", "cuda"], "not for cuda; expected roofline; choose another "),
        ("roofline", ["--target", "arm64"], "not for arm64; expected instructions or mca; "),
    ],
)
def test_an_estimator_of_other_machines_is_refused_first(
    verb: str, estimator: str, where: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb, *where, "--estimator", estimator]) == 2
    assert told in capsys.readouterr().err
