"""What was good elsewhere: the winners of the nearest places, carried into the space."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels.space import Config, Knob, Space
from kernels.version import version
from kernels.workload import Pointwise
from targets import machines
from tune.database import Record
from tune.transfer import Known, similar

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


def expected(*records: Record) -> dict[str, float]:
    """Microseconds expected of each kernel, in their order."""
    found = Known(records=records, target=TARGET, threads=2).standings(WORKLOAD)
    assert all(standing.record in records for standing in found.values())
    return {name: 1e6 * standing.time_s for name, standing in found.items()}


AVX = {"kernel": "te.avx.pointwise"}
STRASSEN = {"kernel": "te.avx.pointwise_strassen"}


def test_kernels_stand_as_at_the_nearest_place_with_as_many_operations_a_second() -> None:
    near = [at(1, workload=shape(Ci=128)), at(1, workload=shape(Ci=128), seconds=(2e-5,), **AVX)]
    far = [at(1, workload=shape(Ci=512)), at(1, workload=shape(Ci=512), seconds=(1.0,), **AVX)]
    order = ["te.avx.pointwise", "te.pointwise"]
    for records in ([*near, *far], [*far, *near]):
        found = expected(*records)
        assert (list(found), found) == (order, pytest.approx({order[0]: 10.0, order[1]: 15.0}))
    assert expected() == expected(replace(RECORD, target="arm64")) == {}


def test_a_kernel_stands_to_others_as_where_it_met_one_of_them() -> None:
    here = at(1, seconds=(1e-5,))
    middle = at(1, workload=shape(Ci=128), seconds=(5e-6,), **STRASSEN)  # with no other
    far = [
        at(1, workload=shape(Ci=512), seconds=(seconds,), **kernel)
        for seconds, kernel in ((4e-5, {}), (2e-5, AVX), (8e-5, STRASSEN))
    ]
    assert expected(here, middle) == pytest.approx({"te.pointwise": 10.0})
    found = expected(here, middle, *far)
    names = ["te.avx.pointwise", "te.pointwise", "te.avx.pointwise_strassen"]
    assert list(found) == names
    assert found == pytest.approx(dict(zip(names, (5.0, 10.0, 20.0), strict=True)))


def test_a_place_is_asked_again_when_more_kernels_are_known() -> None:
    """No place tells of all: the nearest pair becomes comparable by a farther one."""
    here = at(1, seconds=(1e-5,))
    near = [
        at(1, workload=shape(Ci=128), seconds=(seconds,), **kernel)
        for seconds, kernel in ((2e-5, AVX), (1e-5, STRASSEN))
    ]
    far = [
        at(1, workload=shape(Ci=512), seconds=(seconds,), **kernel)
        for seconds, kernel in ((1e-4, {}), (3e-4, AVX))
    ]
    names = ["te.pointwise", "te.avx.pointwise_strassen", "te.avx.pointwise"]
    assert expected(here, *near, *far) == pytest.approx(dict(zip(names, (10, 15, 30), strict=True)))


def test_what_a_kernel_took_before_it_was_changed_is_not_expected() -> None:
    """Unless nothing else is known."""
    name = AVX["kernel"]
    old = at(1, seconds=(3e-4,), stage="final", **AVX)
    new = at(
        1,
        workload=shape(Ci=128),
        seconds=(2e-5,),
        kernel_version=version(name, "x86", "float32"),
        **AVX,
    )
    assert expected(old) == pytest.approx({name: 300.0})
    assert expected(old, new) == pytest.approx({name: 10.0})
    assert expected(RECORD, new) == pytest.approx({name: 10.0})


def test_so_many_threads_share_the_work() -> None:
    [one] = expected(at(1, workload=shape(Ci=128), threads=1, seconds=(4e-5,))).values()
    assert one == pytest.approx(10.0)


def test_who_was_not_in_the_last_meeting_is_not_thought_faster() -> None:
    """Alone a kernel may be faster than another one in the network."""
    met = at(1, seconds=(3e-5,), stage="final")
    alone = at(1, seconds=(2e-5,), **AVX)
    assert expected(met, alone) == pytest.approx({"te.pointwise": 30.0, "te.avx.pointwise": 30.0})


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
