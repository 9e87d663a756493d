"""The log: nothing finished is lost, nothing broken is fatal, no order changes the winner."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.database import Record, append, best, history, read
from tune.errors import LogError

ROOT = Path(__file__).resolve().parents[2]
RECORD = Record(
    workload="pointwise/f32/n1.h14.w14.ci512.co512/relu6",
    kernel="te.pointwise",
    kernel_version="e8dd245710f6",
    config={"BLOCK_P": 6, "ORDER": "rows"},
    target="x86",
    device="znver3",
    threads=1,
    stage="trial",
    seconds=(0.003, 0.001, 0.002),
    error=None,
    checked=True,
    peak_flops=1e11,
    protocol={"repeat": 3, "min_repeat_s": 0.01},
    tvm="0.27.0",
    when="2026-01-01T00:00:00+00:00",
)

# Appends one record after the other, each with its number, and says so when it is done.
WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from tests_record import RECORD
from tune.database import append

for number in range(int(sys.argv[2])):
    record = replace(RECORD, device=sys.argv[3], config={"NUMBER": number, "PAD": "x" * 5000})
    append(Path(sys.argv[1]), [record])
    print(number, flush=True)
"""

texts = st.text(max_size=20)
times = st.floats(min_value=1e-9, max_value=1e3)
configs = st.dictionaries(texts, st.integers() | texts, max_size=4)
records = st.builds(
    lambda outcome, **fields: replace(RECORD, **outcome, **fields),
    outcome=st.fixed_dictionaries({"seconds": st.lists(times, min_size=1).map(tuple)})
    | st.fixed_dictionaries({"seconds": st.just(()), "error": texts.map("run: {}".format)}),
    config=configs,
    stage=st.sampled_from(("trial", "final")),
    device=texts,
    threads=st.integers(1, 64),
    checked=st.booleans(),
    estimator=st.none() | texts,
    peak_flops=st.none() | times,
)


@settings(max_examples=50, deadline=None)
@given(written=st.lists(records, max_size=4))
def test_what_is_written_is_read(
    written: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("log") / "new" / "log.jsonl"
    append(path, written)
    assert read(path).records == tuple(written)


def test_line_has_these_fields(tmp_path: Path) -> None:
    append(tmp_path / "log", [RECORD])
    line = json.loads((tmp_path / "log").read_text())
    assert " ".join(line) == (
        "format workload kernel kernel_version config target device threads stage seconds apart_s "
        "error checked estimator peak_flops protocol board ran tvm when"
    )
    assert line["format"] == 1
    assert line["seconds"] == [0.003, 0.001, 0.002]
    assert line["estimator"] is None


def test_torn_line_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, [RECORD, RECORD])
    os.truncate(path, path.stat().st_size - 30)
    append(path, [RECORD, RECORD])
    assert read(path).records == (RECORD, RECORD, RECORD)
    assert read(path).skipped == 1


def foreign(**changes: object) -> str:
    return json.dumps(asdict(RECORD) | changes)


@pytest.mark.parametrize(
    "line",
    [
        "# a comment",
        "null",
        "7",
        "[]",
        "{}",
        "[" * 100_000,
        '{"i": [["llvm"]], "r": [[0.1], 0, 1.2], "v": "v0.6"}',
        foreign(format=2),
        foreign(stage="rehearsal"),
        foreign(seconds=[]),
        foreign(seconds=[0.0]),
        foreign(seconds=[float("nan")]),
        foreign(seconds=["fast"]),
        foreign(seconds=None),
        foreign(error="run: but it has a time"),
        foreign(config=[1, 2]),
        foreign(config={"BLOCK_P": None}),
        foreign(threads="two"),
        foreign(workload=None),
        foreign(target="vax"),
        foreign(workload="separable/f32/n1.h14.w14.c512/relu6"),
        "\x00" * 40,
        "\ud800",
    ],
    ids=lambda line: ascii(line[:20] if len(line) < 300 else "…"),
)
def test_foreign_lines_are_skipped(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, [RECORD])
    with path.open("ab") as file:
        file.write(line.encode(errors="surrogatepass") + b"\n\n")
    append(path, [RECORD])
    assert read(path).records == (RECORD, RECORD)
    assert read(path).skipped == 1


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(foreign(humidity=0.4))
    assert read(tmp_path / "log").records == (RECORD,)


def test_missing_log_is_empty_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    assert read(path, missing_ok=True).records == ()
    with pytest.raises(LogError, match=r"none\.jsonl"):
        read(path)


def binary(path: Path) -> Path:
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(range(256)))
    return path


@pytest.mark.parametrize(
    "unreadable", [lambda path: path.parent, binary, lambda path: binary(path) / "below"]
)
def test_unreadable_log_is_named(unreadable: Callable[[Path], Path], tmp_path: Path) -> None:
    path = unreadable(tmp_path / "log.so")
    with pytest.raises(LogError) as caught:
        read(path, missing_ok=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unwritable_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "log", Path("/dev/full")):
        with pytest.raises(LogError, match=str(path)):
            append(path, [RECORD])


def writer(folder: Path, path: Path, count: int, device: str) -> subprocess.Popen[bytes]:
    """A process that appends `count` records to `path` and prints the number of each."""
    (folder / "tests_record.py").write_text(
        f"from tune.database import Record\nRECORD = {RECORD!r}\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(count), device],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"},
        stdout=subprocess.PIPE,
    )


def test_processes_append_at_once(tmp_path: Path) -> None:
    path, count = tmp_path / "log", 100
    processes = [writer(tmp_path, path, count, f"d{index}") for index in range(4)]
    for process in processes:
        process.communicate(timeout=20)
    log = read(path)
    assert log.skipped == 0
    for index in range(len(processes)):
        numbers = [r.config["NUMBER"] for r in log.records if r.device == f"d{index}"]
        assert numbers == list(range(count))


def test_killed_process_loses_no_finished_record(tmp_path: Path) -> None:
    path, finished, delays = tmp_path / "log", 0, random.Random(0)
    for _ in range(4):
        process = writer(tmp_path, path, 1_000_000, "d")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delays.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        finished += 1 + process.communicate(timeout=20)[0].count(b"\n")
    assert finished <= len(read(path).records) <= finished + 4


def test_every_line_of_a_long_log_takes_the_same(tmp_path: Path) -> None:
    """Calls are counted: no line is parsed twice or compared with all others."""
    counts = []
    for lines in (1, 100, 200, 300):  # the first fills caches
        (tmp_path / "log").write_text(f"{json.dumps(asdict(RECORD))}\n" * lines)
        seen: list[str] = []
        sys.setprofile(lambda frame, event, argument, seen=seen: seen.append(event))
        log = read(tmp_path / "log")
        sys.setprofile(None)
        assert len(log.records) == lines
        counts.append(len(seen))
    _, first, second, third = counts
    assert second - first < 100 * 200
    assert third - second == pytest.approx(second - first, rel=0.01)  # the collector calls, too


def winner(found: list[Record]) -> Record | None:
    return best(
        found,
        workload=RECORD.workload,
        target=RECORD.target,
        device=RECORD.device,
        threads=RECORD.threads,
        versions={RECORD.kernel: RECORD.kernel_version},
    )


def measured(block: int, *seconds: float, stage: str = "trial", minute: int = 1) -> Record:
    when = f"2026-11-25T10:{minute:02}:00+00:00"
    return replace(RECORD, config={"BLOCK_P": block}, seconds=seconds, stage=stage, when=when)


def test_best_is_the_fastest_median() -> None:
    assert winner([measured(1, 1, 5, 5), measured(2, 3, 3, 3), measured(4, 4, 4, 4)]) == measured(
        2, 3, 3, 3
    )
    assert winner([]) is None


def test_only_finalists_win_where_there_are_finals() -> None:
    lucky, finals = measured(1, 1), [measured(2, 3, stage="final"), measured(4, 2, stage="final")]
    assert winner([lucky, *finals]) == finals[1]


def test_the_last_meeting_decides() -> None:
    """On a machine that is slower now, whoever won before is compared as it is now."""
    before = [measured(1, 1, stage="final"), measured(2, 2, stage="final")]
    after = [
        measured(1, 5, stage="final", minute=2),
        measured(4, 4, stage="final", minute=2),
    ]
    assert winner(before) == before[0]
    assert winner(before + after) == winner(after + before) == after[1]


def test_repeated_line_counts_once() -> None:
    luck, usual = measured(1, 1), measured(1, 5, minute=2)
    rival = measured(2, 2)
    assert winner([luck, usual, rival]) == winner([luck, luck, usual, rival]) == rival


@pytest.mark.parametrize(
    "other",
    [
        {"workload": "pointwise/f32/n1.h7.w7.ci512.co512/relu6"},
        {"target": "arm64"},
        {"device": "znver4"},
        {"threads": 2},
        {"kernel": "te.other"},
        {"kernel_version": "0"},
        {"estimator": "mca"},
        {"checked": False},
        {"seconds": (), "error": "timeout: 30 s"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_best_uses_nothing_from_elsewhere(other: dict[str, object]) -> None:
    faster = replace(RECORD, **({"seconds": (1e-6,)} | other))  # type: ignore[arg-type]
    assert winner([faster, RECORD]) == RECORD
    assert winner([faster]) is None


def test_only_a_model_needs_no_right_answer() -> None:
    """It runs nothing. An estimate from running the code counts when the answer was right."""
    place = {"workload": RECORD.workload, "target": "x86", "device": "znver3", "threads": 1}
    versions = {RECORD.kernel: RECORD.kernel_version}
    for estimator, counts in (("roofline", True), ("mca", False)):
        unchecked = replace(RECORD, estimator=estimator, checked=False)
        found = best([unchecked], versions=versions, estimator=estimator, **place)  # type: ignore[arg-type]
        assert (found is not None) is counts
        assert history([unchecked]) == [(RECORD.config, 0.002 if counts else None)]
        assert winner([unchecked]) is None


rivals = st.builds(
    lambda block, seconds, stage, minute: measured(block, *seconds, stage=stage, minute=minute),
    block=st.integers(1, 3),
    seconds=st.lists(st.sampled_from((1.0, 2.0, 3.0)), min_size=1, max_size=3),
    stage=st.sampled_from(("trial", "final")),
    minute=st.sampled_from((1, 2)),
)


@settings(deadline=None)
@given(found=st.lists(rivals, max_size=8), data=st.data())
def test_best_ignores_order_and_repetition(found: list[Record], data: st.DataObject) -> None:
    repeated = found + data.draw(
        st.lists(st.sampled_from(found), max_size=4) if found else st.just([])
    )
    shuffled = data.draw(st.permutations(repeated))
    assert winner(shuffled) == winner(found)


def test_history_has_one_entry_for_each_config() -> None:
    failed = replace(RECORD, config={"BLOCK_P": 2}, seconds=(), error="compile: no")
    unchecked = replace(measured(3, 1), checked=False)
    found = [
        measured(1, 1),
        failed,
        measured(1, 3, minute=2),
        unchecked,
        measured(1, 9, stage="final"),
    ]
    expected = [({"BLOCK_P": 1}, 2.0), ({"BLOCK_P": 2}, None), ({"BLOCK_P": 3}, None)]
    assert history(found) == expected
    assert history(found + found) == expected
