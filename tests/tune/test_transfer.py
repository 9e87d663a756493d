"""What was good elsewhere: the winners of the nearest places, carried into the space."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels.space import Config, Knob, Space
from kernels.workload import Pointwise
from targets import machines
from tune.database import Record
from tune.transfer import similar

TARGET = machines("x86").DEVICES["znver4"]
WORKLOAD = Pointwise(N=1, H=14, W=14, Ci=64, Co=128)
SPACE = Space(knobs=(Knob("BLOCK_P", (1, 2, 4, 8), 4), Knob("CHUNK", (1, 2), 1)))
RECORD = Record(
    workload=WORKLOAD.key,
    kernel="te.pointwise",
    kernel_version="0",
    config={"BLOCK_P": 1, "CHUNK": 1},
    target="x86",
    device="znver4",
    threads=2,
    stage="trial",
    seconds=(3e-5,),
    error=None,
    checked=True,
    tvm="0.27.0",
    when="2026-01-01T00:00:00+00:00",
)


def found(*records: Record, limit: int = 4) -> list[Config]:
    pairs = similar(records, WORKLOAD, "te.pointwise", SPACE, target=TARGET, threads=2, limit=limit)
    assert all(config == SPACE.nearest(record.config) for config, record in pairs)
    assert all(record in records for _, record in pairs)
    return [config for config, _ in pairs]


def at(rows: int, chunk: int = 1, **changes: object) -> Record:
    config = {"BLOCK_P": rows, "CHUNK": chunk}
    return replace(RECORD, config=config, **changes)  # type: ignore[arg-type]


def shape(**sizes: int) -> str:
    return replace(WORKLOAD, **sizes).key


def test_a_device_with_other_vectors_is_far() -> None:
    """znver3 has half as many registers, half as wide: a shape twice as large is nearer."""
    records = [at(4, device="znver3"), at(2, workload=shape(Ci=128)), at(8, device="unheard-of")]
    assert [config["BLOCK_P"] for config in found(*records)] == [2, 4, 8]


def test_nearest_first() -> None:
    """A shape counts by doublings; another device or thread count is nearer than another shape."""
    records = [
        at(8, 2, workload=shape(Ci=512)),
        at(8, workload=shape(Ci=128)),
        at(4, device="znver5"),
        at(2, threads=1),
        at(1),
    ]
    blocks = [config["BLOCK_P"] for config in found(*records, limit=9)]
    assert blocks == [config["BLOCK_P"] for config in found(*reversed(records), limit=9)]
    assert blocks == [1, 2, 4, 8, 8]


def test_limit_cuts_the_farthest() -> None:
    records = [at(4, device="znver3"), at(2, threads=1), at(1)]
    assert found(*records, limit=2) == [at(1).config, at(2).config]
    assert found(*records, limit=1) == [at(1).config]
    assert found() == []


def test_of_estimates_of_the_workload_the_best_count_as_one_place() -> None:
    thought = [
        at(rows, chunk, seconds=(rows + chunk / 10,), estimator="roofline", checked=False)
        for rows in (8, 4, 2, 1)
        for chunk in (2, 1)
    ]
    best = [{"BLOCK_P": rows, "CHUNK": chunk} for rows in (1, 2) for chunk in (1, 2)]
    assert found(*thought) == best
    assert found(*thought, at(8), limit=1) == [at(8).config]
    assert found(*thought, at(8), limit=2) == [at(8).config, *best]
    elsewhere = [replace(record, workload=shape(Ci=128)) for record in thought]
    assert found(*elsewhere) == best[:1]


def test_one_winner_of_each_place() -> None:
    assert found(at(1, seconds=(3.0,)), at(2, seconds=(2.0,))) == [at(2).config]


def test_finals_decide_where_there_are_some() -> None:
    lucky, final = at(1, seconds=(1.0,)), at(2, seconds=(2.0,), stage="final")
    assert found(lucky, final) == found(final, lucky) == [final.config]


def test_same_config_counts_once() -> None:
    records = [at(1), at(1, threads=1), at(1, device="znver3"), at(2, workload=shape(Ci=128))]
    assert found(*records) == [at(1).config, at(2).config]


def test_config_is_carried_into_the_space() -> None:
    foreign = replace(RECORD, config={"BLOCK_P": 7, "TILE": 3})
    assert found(foreign) == [{"BLOCK_P": 8, "CHUNK": 1}]


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel": "te.head"},
        {"target": "arm64"},
        {"seconds": (), "error": "run: SIGSEGV", "checked": False},
    ],
    ids=["kernel", "target", "failure"],
)
def test_says_nothing(changes: dict[str, object]) -> None:
    assert found(replace(RECORD, **changes)) == []  # type: ignore[arg-type]
