"""Log files kept: nothing is lost, nothing that serves is left out, differences are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels import kernel
from kernels.version import version
from targets import machines
from tune import cli, database, pipeline
from tune.database import Record
from tune.errors import LogError, UsageError
from tune.mobilenet import MobileNet
from tune.plan import plan

HOST = machines("x86").DEVICES["znver4"]
MODEL = MobileNet(alpha=0.25, resolution=32)
STEM, DEPTHWISE = (layer.workload for layer in MODEL.layers[:2])
DEFAULT = kernel("te.conv").space(STEM, HOST).default
CONFIGS = list(kernel("te.conv").space(STEM, HOST))[:8]


def record(time_s: float | None = 1e-4, **changes: Any) -> Record:
    """A trial of the stem's default config, on one thread."""
    fields: dict[str, Any] = {
        "workload": STEM.key,
        "kernel": "te.conv",
        "kernel_version": version("te.conv", "x86", "float32"),
        "config": DEFAULT,
        "target": "x86",
        "device": "znver4",
        "threads": 1,
        "stage": "trial",
        "seconds": () if time_s is None else (time_s,),
        "error": "run: SIGSEGV" if time_s is None else None,
        "checked": time_s is not None,
        "peak_flops": 1e11,
        "protocol": {"repeat": 1, "min_repeat_s": 0.01},
        "tvm": "0.27.0",
        "when": "2026-01-01T00:00:00+00:00",
    }
    return Record(**fields | changes)


OLD = record(5e-5, kernel_version="0" * 12)
FAILED = record(None, config=CONFIGS[1])
GUESS = record(2e-4, estimator="mca")


def written(path: Path, *records: Record, torn: bool = False) -> Path:
    database.append(path, records)
    if torn:
        with path.open("ab") as file:
            file.write(b'{"format": 1, "worklo')
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[str]:
    """What a `log` command prints."""
    assert cli.main(["log", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_merge_adds_each_record_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "one", record(), FAILED, torn=True)
    other = written(tmp_path / "other", FAILED, GUESS, GUESS)
    output = tmp_path / "new" / "all"
    assert run(capsys, "merge", one, other, "-o", output) == [
        f"log: {output}, 3 records added, 1 lines skipped"
    ]
    assert database.read(output).records == (record(), FAILED, GUESS)
    assert run(capsys, "merge", one, other, "-o", output) == [
        f"log: {output}, 0 records added, 1 lines skipped"
    ]
    assert database.read(output).records == (record(), FAILED, GUESS)
    with pytest.raises(LogError):
        pipeline.merge([tmp_path / "none"], output)


times = st.floats(min_value=1e-6, max_value=1e-2)
trials = st.builds(
    lambda config, time_s, stage, when: record(
        time_s, config=CONFIGS[config], stage=stage, when=f"2026-01-01T00:00:{when:02d}+00:00"
    ),
    config=st.integers(0, 7),
    time_s=times,
    stage=st.sampled_from(["trial", "final"]),
    when=st.integers(0, 59),
)


@settings(max_examples=50, deadline=None)
@given(records=st.lists(trials, min_size=1, max_size=12))
@example(  # the winner's first final is of an earlier meeting than the last, which has another
    records=[
        record(9e-3, config=CONFIGS[0], stage="final", when="2026-01-01T00:00:11+00:00"),
        record(8e-3, config=CONFIGS[1], stage="final", when="2026-01-01T00:00:00+00:00"),
        record(8e-3, config=CONFIGS[1], stage="final", when="2026-01-01T00:00:01+00:00"),
    ]
)
def test_the_best_of_a_log_is_planned_as_the_whole_log(
    records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = written(folder / "log", *records, GUESS, FAILED, OLD)
    pipeline.add(pipeline.best(log), folder / "best")
    whole, few = (
        plan(MODEL.layers[:1], database.read(path).records, HOST, 1)
        for path in (log, folder / "best")
    )
    assert whole == few
    assert whole[0].why == "measured"


def test_best_prints_and_keeps_what_decides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = record(3e-4, config=CONFIGS[1])
    final = record(1.5e-4, stage="final")
    log = written(tmp_path / "log", record(), slower, final, OLD, FAILED, GUESS)
    output, stored = tmp_path / "best", tmp_path / "best.json"
    lines = run(capsys, "best", "--log", log, "-o", output, "--json", stored)
    config = [f"{name}={value}" for name, value in DEFAULT.items()]
    assert lines[1].split() == ["znver4/1", STEM.key, "te.conv", *config, "final", "150.0", "µs"]
    assert lines[2].split()[-4:] == ["trial", "200.0", "k", "cycles"]
    assert lines[3:] == [f"log: {output}, 2 records added", f"json: {stored}"]
    assert database.read(output).records == (final, GUESS)
    assert [one["stage"] for one in json.loads(stored.read_text())] == ["final", "trial"]


def test_diff_tells_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depthwise = {"workload": DEPTHWISE.key, "kernel": "te.depthwise", "kernel_version": "a" * 12}
    old = written(
        *(tmp_path / "old", record(1e-4), record(9e-4, config=CONFIGS[1]), GUESS),
        *(record(1e-4, threads=2), record(1e-4, device="znver3"), record(2e-4, **depthwise)),
    )
    new = written(
        *(tmp_path / "new", record(1.2e-4), replace(GUESS, seconds=(2.05e-4,))),
        *(record(0.5e-4, threads=2), record(1e-4, threads=4), record(None, device="znver3")),
        record(3e-4, **depthwise | {"kernel_version": "b" * 12}),
    )
    stored = tmp_path / "rows.json"
    lines = run(capsys, "diff", old, new, "--json", stored)
    cells = [line.split() for line in lines[1:-2]]
    assert [(row[0], row[2]) for row in cells] == [
        ("znver4/1", "slower"),
        ("znver4/1", "slower"),
        ("znver4/mca", "same"),
        ("znver4/2", "faster"),
        ("znver3/1", "gone"),
        ("znver4/4", "added"),
    ]
    assert cells[0][1:] == [DEPTHWISE.key, "slower", "200.0", "µs", "300.0", "µs", "1.50"]
    assert cells[1][1:] == [STEM.key, "slower", "100.0", "µs", "120.0", "µs", "1.20"]
    assert lines[-2] == "2 slower, 1 faster, 1 same, 1 added, 1 gone"
    assert json.loads(stored.read_text())[0]["ratio"] == pytest.approx(1.5)
    relaxed = run(capsys, "diff", old, new, "--threshold", "25%")
    assert relaxed[-1] == "1 slower, 1 faster, 2 same, 1 added, 1 gone"


def test_a_share_is_a_percentage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["log", "diff", "a", "b", "--threshold", "0.1"]) == 2
    assert "'0.1' is no share; expected e.g. 10% or 2.5%" in capsys.readouterr().err


def test_prune_keeps_all_that_serves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    olds = [replace(OLD, seconds=(n * 1e-5,), config=CONFIGS[n % 8]) for n in range(1, 8)]
    gone = record(kernel="te.gone")
    unsound = replace(FAILED, kernel_version="0" * 12)
    log = written(
        tmp_path / "log", record(), record(), FAILED, GUESS, *olds, gone, unsound, torn=True
    )
    output = tmp_path / "pruned"
    assert run(capsys, "prune", "--log", log, "-o", output) == [
        f"log: {output}, 7 records kept, 6 left out"
    ]
    # The fastest of the kernels that are no more remain, as seeds.
    assert database.read(output).records == (record(), FAILED, GUESS, *olds[:4])
    assert database.read(output).skipped == 0
    content = output.read_bytes()
    with pytest.raises(UsageError) as error:
        pipeline.prune(log, output)
    assert str(error.value) == (
        f"{output} exists; expected the name of a new file; choose another -o"
    )
    assert output.read_bytes() == content


def test_stats_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = record(stage="final", threads=2, when="2026-02-01T00:00:00+00:00")
    log = written(tmp_path / "log", record(), record(), FAILED, GUESS, OLD, later, torn=True)
    stored = tmp_path / "facts.json"
    lines = run(capsys, "stats", "--log", log, "--json", stored)
    assert json.loads(stored.read_text()) == {
        "records": 6,
        "unreadable lines": 1,
        "repetitions": 1,
        "workloads": 1,
        "devices": ["x86/znver4"],
        "threads": [1, 2],
        "trials": 5,
        "finals": 1,
        "estimates": 1,
        "failures": {"run": 1},
        "of old kernels": 1,
        "first": "2026-01-01T00:00:00+00:00",
        "last": "2026-02-01T00:00:00+00:00",
    }
    assert lines[0].split() == ["records", "6"]
    assert "failures          1 run" in lines
    assert lines[-2:] == [f"log: {log}", f"json: {stored}"]
    (tmp_path / "empty").touch()
    assert run(capsys, "stats", "--log", tmp_path / "empty")[0].split() == ["records", "0"]


def test_a_table_holds_all_that_a_log_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = record(board="pi:9090", ran=(1.5, 2.5), seconds=(1e-4, 3e-4))
    awkward = replace(FAILED, error='run: "quoted", and\na new line')
    records = (record(), board, awkward, GUESS, OLD, record(workload=DEPTHWISE.key, apart_s=2e-4))
    log, table, back = (tmp_path / name for name in ("log", "table.csv", "back"))
    written(log, *records)
    assert run(capsys, "export", "--log", log, "-o", table) == [f"table: {table}, 6 records"]
    assert run(capsys, "import", table, "--log", back) == [f"log: {back}, 6 records added"]
    assert database.read(back).records == records
    assert run(capsys, "import", table, "--log", back) == [f"log: {back}, 0 records added"]
    assert back.read_bytes() == log.read_bytes()

    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join([rows[0], rows[1].replace(STEM.key, "conv/none"), "1,2\n", rows[2]]))
    assert run(capsys, "import", table, "--log", tmp_path / "some") == [
        f"log: {tmp_path / 'some'}, 1 records added, 2 rows skipped"
    ]


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("workload,seconds\na,1\n")
    with pytest.raises(LogError, match=r"has no columns .*checked, config, .*; expected those"):
        pipeline.read_csv(table, tmp_path / "log")
    for unreadable in (tmp_path, tmp_path / "none"):
        with pytest.raises(LogError, match="cannot be read"):
            pipeline.read_csv(unreadable, tmp_path / "log")
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(LogError, match="cannot be read"):
        pipeline.read_csv(table, tmp_path / "log")
    assert not (tmp_path / "log").exists()
    with pytest.raises(UsageError, match="cannot write"):
        pipeline.write_csv(written(tmp_path / "log", record()), tmp_path)
