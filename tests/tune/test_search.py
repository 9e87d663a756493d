"""Strategies on replayed logs of made-up kernels that behave like real ones."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from dataclasses import replace

import pytest
from measuring import outcomes

from kernels.space import Config, Constraint, Knob, Space
from kernels.workload import Pointwise
from tune.database import Record
from tune.runners.protocol import Outcome, Runner
from tune.runners.replay import ReplayRunner
from tune.search import expected_gain, propose

WORKLOAD = Pointwise(N=1, H=14, W=14, Ci=512, Co=512)
TRIALS, BATCH = 60, 8

History = list[tuple[Config, float | None]]


def block(config: Config, name: str) -> int:
    return int(config[name])


def tile(config: Config) -> int:
    """Accumulators of the register tile."""
    return block(config, "BLOCK_P") * block(config, "BLOCK_CO") // 16


SPACE = Space(
    knobs=(
        Knob("BLOCK_P", (2, 3, 4, 6, 7, 8, 14), 6),
        Knob("BLOCK_CO", (16, 32, 48, 64), 32),
        Knob("CHUNK", (1, 2, 4, 7, 14), 1),
        Knob("UNROLL", (1, 2, 4), 1),
        Knob("ORDER", ("rows", "blocks"), "rows"),
    ),
    constraints=(
        Constraint("registers", lambda config: 8 <= tile(config) <= 26),
        Constraint("whole chunks", lambda c: c["ORDER"] == "rows" or block(c, "CHUNK") > 1),
    ),
)
CONFIGS = list(SPACE)


def cost_s(config: Config) -> float:
    """Seconds of a config, without noise: each effect is a factor, and effects interact."""
    rows, columns, chunk = (block(config, name) for name in ("BLOCK_P", "BLOCK_CO", "CHUNK"))
    latency = 1 + 0.9 * max(0.0, 1 - tile(config) / 18)
    spills = 1.4 if tile(config) > 24 else 1.0
    loads = 1 + 0.4 * (1 / rows + 16 / columns)
    reuse = 1 + 0.1 * abs(math.log2(rows * chunk / 20))
    waste = math.ceil(196 / rows) * rows / 196
    code = {1: 1.06, 2: 1.0, 4: 1.02 if tile(config) < 18 else 1.12}[block(config, "UNROLL")]
    order = {"rows": 1.0, "blocks": 0.95 if columns > 32 else 1.05}[str(config["ORDER"])]
    return 1e-4 * latency * spills * loads * reuse * waste * code * order


OPTIMUM_S = min(map(cost_s, CONFIGS))


def log(seed: int, noise: float = 0.01) -> list[Record]:
    """A record of every config, its times off by `noise`."""
    luck = random.Random(seed)
    record = Record(
        workload=WORKLOAD.key,
        kernel="fake",
        kernel_version="1",
        config={},
        target="x86",
        device="fake",
        threads=1,
        stage="trial",
        seconds=(1.0,),
        error=None,
        checked=True,
        tvm="0",
        when="2026-01-01T00:00:00+00:00",
    )
    return [
        replace(record, config=config, seconds=(cost_s(config) * luck.lognormvariate(0, noise),))
        for config in CONFIGS
    ]


def measure(runner: Runner, configs: list[Config]) -> History:
    found = outcomes(runner, WORKLOAD, "fake", configs)
    return [(o.config, statistics.median(o.seconds) if o.seconds else None) for o in found]


def searched(seed: int) -> History:
    """The history of a search of TRIALS."""
    runner = ReplayRunner(log(seed))
    history: History = []
    while len(history) < TRIALS:
        count = min(BATCH, TRIALS - len(history))
        history += measure(runner, propose(SPACE, history, seed=seed, count=count))
    return history


def sampled(seed: int) -> History:
    """The history of as many trials at random."""
    configs = random.Random(seed).sample(CONFIGS, TRIALS)
    return measure(ReplayRunner(log(seed)), configs)


def loss(history: History) -> float:
    """How much slower than the optimum the config is that measured fastest."""
    chosen, _ = min(history, key=lambda entry: entry[1] or math.inf)
    return cost_s(chosen) / OPTIMUM_S - 1


def names(configs: list[Config]) -> list[str]:
    return [str(sorted(config.items())) for config in configs]


def test_space_is_worth_a_search() -> None:
    near = sum(cost_s(config) <= 1.03 * OPTIMUM_S for config in CONFIGS)
    assert 350 <= len(CONFIGS) <= 500
    assert near <= 5
    assert cost_s(SPACE.default) > 1.1 * OPTIMUM_S


def test_search_finds_the_optimum_and_beats_chance() -> None:
    losses = [loss(searched(seed)) for seed in range(10)]
    chance = [loss(sampled(seed)) for seed in range(10)]
    assert sum(value <= 0.03 for value in losses) >= 9
    assert statistics.median(losses) < statistics.median(chance)


def test_search_without_xgboost_beats_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    losses = [loss(searched(seed)) for seed in range(10)]
    chance = [loss(sampled(seed)) for seed in range(10)]
    assert statistics.median(losses) < statistics.median(chance)
    assert sum(value <= 0.03 for value in losses) >= 8
    assert searched(3) == searched(3)


def test_proposals_are_valid_new_and_reproducible() -> None:
    first, second = searched(3), searched(3)
    tried = [config for config, _ in first]
    assert first == second
    assert len(set(names(tried))) == TRIALS
    assert all(config in SPACE for config in tried)
    assert names(tried) != names([config for config, _ in searched(4)])


def test_space_is_exhausted_without_repetition() -> None:
    unroll = Constraint("unroll", lambda config: config["UNROLL"] == 2 and config["CHUNK"] == 2)
    small = replace(SPACE, constraints=(*SPACE.constraints, unroll))
    history: History = []
    while batch := propose(small, history, seed=0, count=7):
        history += [(config, cost_s(config)) for config in batch]
    assert sorted(names([config for config, _ in history])) == sorted(names(list(small)))


def test_small_space_is_measured_whole() -> None:
    assert propose(SPACE, [], seed=0, count=len(CONFIGS)) == CONFIGS
    history = [(config, 1.0) for config in CONFIGS[5:]]
    assert propose(SPACE, history, seed=0, count=BATCH) == CONFIGS[:5]


def test_seeds_come_first_then_the_default() -> None:
    outside: Config = {"BLOCK_P": 13, "BLOCK_CO": 16, "CHUNK": 3, "UNROLL": 8, "ORDER": "spiral"}
    seeds = [CONFIGS[7], outside, CONFIGS[7]]
    expected = [CONFIGS[7], SPACE.nearest(outside), SPACE.default]
    assert propose(SPACE, [], seed=0, count=BATCH, seeds=seeds)[:3] == expected
    assert propose(SPACE, [], seed=0, count=2, seeds=seeds) == expected[:2]
    history = [(config, 1.0) for config in expected[:1]]
    assert propose(SPACE, history, seed=0, count=BATCH, seeds=seeds)[:2] == expected[1:]


def test_search_avoids_what_fails() -> None:
    def outcome(config: Config) -> float | None:
        return None if block(config, "BLOCK_CO") == 32 else cost_s(config)

    spread = propose(SPACE, [], seed=0, count=12)
    assert any(outcome(config) is None for config in spread)
    proposed = propose(SPACE, [(c, outcome(c)) for c in CONFIGS[::4]], seed=0, count=BATCH)
    assert sum(outcome(config) is None for config in proposed) <= 2


def test_search_goes_on_where_everything_fails() -> None:
    history: History = [(config, None) for config in CONFIGS[:20]]
    assert len(propose(SPACE, history, seed=0, count=BATCH)) == BATCH


def test_history_of_another_space_does_no_harm() -> None:
    history: History = [({"BLOCK_P": 5}, 1e-9), (CONFIGS[0], 1.0)] * 10
    assert len(propose(SPACE, history, seed=0, count=BATCH)) == BATCH


def test_proposing_is_quick() -> None:
    ten = tuple(range(10))
    space = Space(knobs=(*(Knob(n, ten, 0) for n in "abc"), Knob("d", ("x", "y"), "x")))
    history: History = [
        (config, 1.0 + number % 7) for number, config in enumerate(list(space)[::6][:300])
    ]
    propose(space, history, seed=0, count=BATCH)  # loads xgboost
    start = time.process_time()
    propose(space, history, seed=1, count=BATCH, seeds=[{"a": 3}])
    assert time.process_time() - start < 0.5  # some times what it takes, for slow machines


def improving(*times_s: float | None) -> History:
    return [({"BLOCK_P": number}, time_s) for number, time_s in enumerate(times_s)]


def test_nothing_is_expected_of_a_space_that_is_measured() -> None:
    assert expected_gain(improving(4.0, 3.0, 2.0), space_size=3, floor_s=None) == 0
    assert expected_gain(improving(None, None), space_size=2, floor_s=None) == 0


@pytest.mark.parametrize("floor_s", [1.96, 2.0, 2.1])
def test_nothing_is_expected_at_the_floor(floor_s: float) -> None:
    assert expected_gain(improving(4.0, 2.0), space_size=400, floor_s=floor_s) == 0


def test_no_more_is_expected_than_the_floor_leaves() -> None:
    history = improving(4.0, 2.0)
    assert expected_gain(history, space_size=400, floor_s=1.8) == pytest.approx(0.1)
    assert expected_gain(history, space_size=400, floor_s=None) > 0.3


def test_expectation_grows_with_improvements_and_fades() -> None:
    def gain(*times_s: float | None) -> float:
        return expected_gain(improving(*times_s), space_size=400, floor_s=None)

    assert 0 < gain() < 1
    assert gain(4.0, 2.0) > gain(4.0, 3.9)
    assert gain(4.0, 2.0, *[2.5] * 8) == pytest.approx(gain(4.0, 2.0) / 2, rel=0.1)
    assert gain(4.0, 2.0, *[2.5] * 80) < 0.001
    assert gain(*[None] * 8) > gain(*[None] * 80)
    long_ago = [4.0, 3.0, *[3.5] * 60]
    assert gain(*long_ago, 2.999) == pytest.approx(gain(*long_ago, 3.5), rel=0.1)


def test_replay_answers_as_recorded() -> None:
    ran, failed, *_ = log(seed=0)
    failed = replace(failed, seconds=(), error="compile: no", checked=False)
    unknown = CONFIGS[-1]
    runner: Runner = ReplayRunner([ran, failed])
    asked = [failed.config, unknown, ran.config]
    first, second, third = outcomes(runner, WORKLOAD, "fake", asked)
    assert first == Outcome(config=failed.config, error="compile: no")
    assert (second.config, second.seconds, second.checked) == (unknown, (), False)
    assert (second.error or "").startswith("run: not recorded")
    assert third == Outcome(config=ran.config, seconds=ran.seconds, checked=True)
    (other,) = outcomes(runner, WORKLOAD, "another kernel", [ran.config])
    assert other.error is not None


def test_replay_takes_the_last_answer_of_one_place() -> None:
    ran = log(seed=0)[0]
    again, final = replace(ran, seconds=(2.0,)), replace(ran, seconds=(3.0,), stage="final")
    (outcome,) = outcomes(ReplayRunner([ran, again, final]), WORKLOAD, "fake", [ran.config])
    assert outcome.seconds == (2.0,)
    with pytest.raises(ValueError, match="znver4"):
        ReplayRunner([ran, replace(ran, device="znver4")])
