"""The plan: measured beats transferred beats default, and nothing from elsewhere is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kernels import kernel
from kernels.space import Config
from kernels.te.tasks import grids
from kernels.version import version
from kernels.workload import Depthwise, Pointwise, Separable, Workload
from targets import machines
from tune.database import Record
from tune.errors import GateError
from tune.mobilenet import Layer, MobileNet
from tune.plan import Choice, plan

TARGET = machines("x86").DEVICES["znver4"]
WORKLOAD = Pointwise(N=1, H=14, W=14, Ci=64, Co=128)
LAYER = Layer(name="block", workload=WORKLOAD)
SPACE = kernel("te.pointwise").space(WORKLOAD, TARGET)
FIRST, SECOND, *_ = [config for config in SPACE if config != SPACE.default]
RECORD = Record(
    workload=WORKLOAD.key,
    kernel="te.pointwise",
    kernel_version=version("te.pointwise", "x86", "float32"),
    config=FIRST,
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
ELSEWHERE = {
    "shape": {"workload": replace(WORKLOAD, H=7, W=7).key},
    "device": {"device": "znver3"},
    "threads": {"threads": 1},
    "version": {"kernel_version": "0" * 12},
    "estimator": {"estimator": "mca"},
}


def current(name: str) -> dict[str, Any]:
    """The kernel as it is now."""
    return {"kernel": name, "kernel_version": version(name, "x86", "float32")}


def tasks(config: Config) -> int:
    return sum(grid.tasks for grid in grids(WORKLOAD, config))


def chosen(*records: Record) -> Choice:
    [choice] = plan([LAYER], records, TARGET, threads=2)
    return choice


def test_nothing_measured_is_the_default() -> None:
    default = kernel("te.avx.pointwise").space(WORKLOAD, TARGET).default
    expected = Choice(layers=(LAYER,), kernel="te.avx.pointwise", config=default, why="default")
    assert chosen() == expected


def test_record_of_its_own_is_measured() -> None:
    choice = chosen(RECORD)
    assert (choice.why, choice.config, choice.time_s) == ("measured", FIRST, 3e-5)
    assert choice.record == RECORD


def test_fastest_is_chosen() -> None:
    faster = replace(RECORD, config=SECOND, seconds=(2e-5,))
    assert chosen(RECORD, faster).config == chosen(faster, RECORD).config == SECOND


@pytest.mark.parametrize("changes", ELSEWHERE.values(), ids=ELSEWHERE)
def test_what_was_found_elsewhere_is_never_measured(changes: dict[str, Any]) -> None:
    faster = replace(RECORD, config=SECOND, seconds=(1e-9,), **changes)
    choice = chosen(faster)
    assert (choice.why, choice.config) == ("transferred", SECOND)
    assert choice.time_s is None
    assert choice.record == faster
    assert chosen(faster, RECORD) == chosen(RECORD, faster) == chosen(RECORD)


def test_estimate_of_its_own_is_told_as_one() -> None:
    """Estimates are made for one thread, and stand until anything is measured."""
    estimate = replace(RECORD, config=SECOND, seconds=(1e-9,), threads=1, estimator="mca")
    choice = chosen(estimate)
    assert (choice.why, choice.config, choice.record) == ("estimated", SECOND, estimate)
    assert chosen(estimate, RECORD) == chosen(RECORD)
    assert chosen(replace(estimate, device="znver3")).why == "transferred"


def test_failures_leave_the_default() -> None:
    for error in ("wrong: output 1", "compile: no", "timeout: 30 s"):
        assert chosen(replace(RECORD, seconds=(), error=error, checked=False)).why == "default"


def test_unchecked_time_is_not_measured() -> None:
    assert chosen(replace(RECORD, checked=False)).why != "measured"


@pytest.mark.parametrize(
    "other", [{"target": "arm64"}, {"kernel": "te.depthwise"}, {"kernel": "te.unheard-of"}]
)
def test_other_kinds_of_machine_and_kernels_say_nothing(other: dict[str, str]) -> None:
    assert chosen(replace(RECORD, **other)).why == "default"  # type: ignore[arg-type]


def test_config_that_the_space_no_longer_has_is_carried_into_it() -> None:
    gone = FIRST | {"BLOCK_P": 1000}
    choice = chosen(replace(RECORD, config=gone))
    assert choice.why == "transferred"
    assert choice.config in SPACE
    assert choice.config == SPACE.nearest(gone)


def test_of_kernels_that_met_elsewhere_the_faster_is_carried_over() -> None:
    elsewhere = replace(RECORD, **ELSEWHERE["shape"])
    other = kernel("te.avx.pointwise").space(WORKLOAD, TARGET).default
    rival = replace(elsewhere, **current("te.avx.pointwise"), config=other)
    for seconds, name in ((2e-5, "te.avx.pointwise"), (4e-5, "te.pointwise")):
        choice = chosen(elsewhere, replace(rival, seconds=(seconds,)))
        assert (choice.why, choice.kernel) == ("transferred", name)


def test_a_machine_says_nothing_of_a_kernel_that_it_cannot_run() -> None:
    """What won there is compared with such a kernel where both have met, far as that may be."""
    target = machines("x86").DEVICES["sapphirerapids"]
    amx, avx = (
        replace(
            RECORD,
            **current(name),
            config=kernel(name).space(WORKLOAD, target).default,
            device="sapphirerapids",
            workload=replace(WORKLOAD, Ci=512, Co=512).key,
            seconds=(seconds,),
        )
        for name, seconds in (("te.amx.pointwise", 1e-4), ("te.avx.pointwise", 2e-4))
    )
    near = replace(avx, device="znver4", workload=WORKLOAD.key, seconds=(1e-5,))
    slower = replace(near, **current("te.pointwise"), config=FIRST, seconds=(2e-5,))
    for records, name in (
        ((near, slower), "te.avx.pointwise"),
        ((near, slower, amx), "te.avx.pointwise"),
        ((near, slower, amx, avx), "te.amx.pointwise"),
        ((near, slower, replace(amx, seconds=(3e-4,)), avx), "te.avx.pointwise"),
    ):
        [choice] = plan([LAYER], records, target, threads=2)
        assert (choice.kernel, choice.why == "transferred") == (name, True)


def test_what_one_thread_did_is_shared_by_several() -> None:
    """As few tasks as give all threads alike, and nothing else of the config is changed."""
    space = kernel("te.avx.pointwise").space(WORKLOAD, TARGET)
    whole = next(config for config in space if tasks(config) == 1)
    one = replace(RECORD, kernel="te.avx.pointwise", config=whole, threads=1)
    for threads in (2, 4, 7):
        [choice] = plan([LAYER], [one], TARGET, threads=threads)
        assert (choice.kernel, choice.record) == ("te.avx.pointwise", one)
        assert choice.config | {"CHUNK": 0} == whole | {"CHUNK": 0}
        assert tasks(choice.config) % threads in (0, threads - 1)


def test_every_layer_has_a_choice_in_its_order() -> None:
    layers = MobileNet().layers
    repeated = next(layer.workload for layer in layers if layer.name == "block9.pointwise")
    space = kernel("te.pointwise").space(repeated, TARGET)
    record = replace(RECORD, workload=repeated.key, config=space.default)
    choices = plan(layers, [record], TARGET, threads=2)
    assert tuple(layer for choice in choices for layer in choice.layers) == layers
    measured = [choice.name for choice in choices if choice.why == "measured"]
    assert measured == [f"block{number}.pointwise" for number in range(7, 12)]
    for choice in choices:
        assert choice.config in kernel(choice.kernel).space(choice.workload, TARGET)


def test_layer_that_no_kernel_computes() -> None:
    layer = Layer(name="block", workload=replace(WORKLOAD, dtype="float16"))
    with pytest.raises(GateError) as error:
        plan([layer], [], TARGET, threads=1)
    assert str(error.value) == (
        "layer block (pointwise/f16/n1.h14.w14.ci64.co128/relu6): no kernel computes it on znver4; "
        "expected one that supports it; see kernels/__init__.py for what there is"
    )


DEPTHWISE = Depthwise(N=1, Hi=14, Wi=14, C=64, stride=1, pad=(1, 1, 1, 1))
BLOCK = (
    Layer(name="block1.depthwise", workload=DEPTHWISE),
    Layer(name="block1.pointwise", workload=WORKLOAD),
)
TOGETHER = Separable.of(DEPTHWISE, WORKLOAD)
APART = (1e-5, 3e-5)


def took(workload: Workload | None, seconds: float, **fields: Any) -> Record:
    """A final of the kernel's default config."""
    assert workload is not None
    name = f"te.{workload.key.partition('/')[0]}"
    return replace(
        RECORD,
        workload=workload.key,
        kernel=name,
        kernel_version=version(name, "x86", "float32"),
        config=kernel(name).space(workload, TARGET).default,
        stage="final",
        seconds=(seconds,),
        **fields,
    )


def names(*records: Record) -> list[str]:
    return [choice.name for choice in plan(BLOCK, records, TARGET, threads=2)]


BOTH = tuple(took(layer.workload, s) for layer, s in zip(BLOCK, APART, strict=True))


@pytest.mark.parametrize(
    ("record", "together"),
    [
        (took(TOGETHER, 3.8e-5), True),
        (took(TOGETHER, 3.9e-5), False),
        (took(TOGETHER, 4.1e-5), False),
        (took(TOGETHER, 3.8e-5, apart_s=3.7e-5), False),
        (took(TOGETHER, 4.1e-5, apart_s=4.3e-5), True),
    ],
    ids=["faster", "hardly faster", "slower", "slower in turns", "faster in turns"],
)
def test_two_layers_in_one_where_that_is_faster(record: Record, together: bool) -> None:
    assert TOGETHER is not None
    choices = plan(BLOCK, (*BOTH, record), TARGET, threads=2)
    expected = ["block1"] if together else ["block1.depthwise", "block1.pointwise"]
    assert [choice.name for choice in choices] == expected
    assert tuple(layer for choice in choices for layer in choice.layers) == BLOCK
    for choice in choices:
        assert (choice.fused_s, choice.apart_s) == (record.time_s, record.apart_s or sum(APART))
    if together:
        assert choices[0].workload == TOGETHER
    apart = plan(BLOCK, (*BOTH, record), TARGET, threads=2, fuse=False)
    assert len(apart) == 2


def test_trials_are_compared_where_two_in_one_have_no_finals() -> None:
    trials = [replace(record, stage="trial") for record in BOTH]
    slow, fast = (replace(took(TOGETHER, s), stage="trial") for s in (4.1e-5, 2e-5))
    assert names(*BOTH, *trials, slow) == [layer.name for layer in BLOCK]
    assert names(*BOTH, *trials, fast) == ["block1"]


def test_apart_where_the_times_cannot_be_compared() -> None:
    """A trial is timed alone, an estimate not at all, and one layer may not be known."""
    faster = took(TOGETHER, 1e-6)
    assert names(*BOTH, replace(faster, stage="trial")) == [layer.name for layer in BLOCK]
    assert names(*BOTH, replace(faster, estimator="mca", threads=1)) == [x.name for x in BLOCK]
    assert names(BOTH[0], faster) == [layer.name for layer in BLOCK]
    assert names(*BOTH, replace(faster, threads=1)) == [layer.name for layer in BLOCK]


@pytest.mark.parametrize(
    ("record", "together"),
    [
        (took(TOGETHER, 3.8e-5), True),
        (took(TOGETHER, 4.1e-5), False),
        (took(TOGETHER, 3.8e-5, apart_s=3.7e-5), False),
        (took(TOGETHER, 3.8e-5, apart_s=4.3e-5, device="znver3"), False),
    ],
    ids=["faster", "slower", "slower in turns", "on another machine"],
)
def test_two_layers_are_carried_over_in_one_where_that_was_faster(
    record: Record, together: bool
) -> None:
    larger = [
        replace(layer, workload=replace(layer.workload, N=2))  # type: ignore[arg-type]
        for layer in BLOCK
    ]
    choices = plan(larger, (*BOTH, record), TARGET, threads=2)
    expected = ["block1"] if together else ["block1.depthwise", "block1.pointwise"]
    assert [(choice.name, choice.why) for choice in choices] == [
        (name, "transferred") for name in expected
    ]
    assert {(choice.fused_s, choice.apart_s) for choice in choices} == {(None, None)}


def test_two_layers_are_not_carried_over_in_one_to_threads_that_cannot_share_it() -> None:
    assert TOGETHER is not None
    records = [replace(record, threads=1) for record in (*BOTH, took(TOGETHER, 3e-5))]
    for threads, kernels in ((1, 1), (2, 1), (64, 2)):
        assert len(plan(BLOCK, records, TARGET, threads=threads)) == kernels


H100, H200 = (machines("cuda").DEVICES[name] for name in ("h100", "h200"))


def on_gpu(workload: Workload | None, seconds: float, **fields: Any) -> Record:
    """A final of the default config of Triton's kernel, on an H200."""
    assert workload is not None
    name = f"triton.{workload.key.partition('/')[0]}"
    return replace(
        took(workload, seconds),
        kernel=name,
        kernel_version=version(name, "cuda", "float32"),
        config=kernel(name).space(workload, H200).default,
        **{"target": "cuda", "device": "h200", "threads": 1} | fields,
    )


SIBLINGS = tuple(on_gpu(layer.workload, s) for layer, s in zip(BLOCK, APART, strict=True))


def test_what_a_sibling_measured_is_better_than_an_estimate() -> None:
    """Its times are no times of this device; a measurement of its own is better still."""
    estimates = [
        replace(r, device="h100", stage="trial", seconds=(1e-9,), estimator="roofline")
        for r in SIBLINGS
    ]
    for choice, record in zip(
        plan(BLOCK, (*estimates, *SIBLINGS), H100, threads=1), SIBLINGS, strict=True
    ):
        assert (choice.why, choice.record, choice.time_s) == ("sibling", record, None)
    own = replace(SIBLINGS[0], device="h100", seconds=(1.0,))
    first, second = plan(BLOCK, (*estimates, *SIBLINGS, own), H100, threads=1)
    assert (first.why, first.time_s, second.why) == ("measured", 1.0, "sibling")
    other = [replace(record, device="a100") for record in SIBLINGS]
    assert {choice.why for choice in plan(BLOCK, other, H100, threads=1)} == {"transferred"}


@pytest.mark.parametrize("seconds", [3.8e-5, 4.1e-5])
def test_a_sibling_tells_whether_two_layers_are_faster_in_one(seconds: float) -> None:
    choices = plan(BLOCK, (*SIBLINGS, on_gpu(TOGETHER, seconds)), H100, threads=1)
    assert len(choices) == (1 if seconds < sum(APART) else 2)
    for choice in choices:
        assert (choice.fused_s, choice.apart_s) == (seconds, sum(APART))
