"""(space, history, seed) -> configs to try. Pure: the same arguments give the same answer.

First what won elsewhere and the kernel's own default, then a sample spread over the space, then
what gradient-boosted models, taught to rank what has been measured, like best, with a share of what
they disagree on. A space that fits into the batch is simply measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.space import Config, Space

History = Sequence[tuple[Config, float | None]]

SPREAD = 12  # configs measured before a model is asked
MODELS = 3  # their disagreement is the doubt
NEIGHBOURS = 4  # that tell of a config, where there is no model
UNSURE_SHARE = 0.2  # of a batch is taken for being in doubt
HOPEFUL = 0.25  # of the space, best first, is worth a doubt
GUESS = 0.3  # before anything is known, a search may save so much
FADE = math.exp2(-1 / 8)  # a trial without improvement; eight of them halve what is expected
DONE = 0.98  # share of the floor beyond which nothing is left to gain


def propose(
    space: Space, history: History, *, seed: int, count: int, seeds: Sequence[Config] = ()
) -> list[Config]:
    """Up to `count` configs of the space that are not in `history`; [] when all are.

    history  (config, seconds) measured so far, seconds None for a failure
    seeds    configs that were good elsewhere, best first; any that lie outside the space are
             carried to their nearest neighbour
    """
    tried = {_key(config) for config, _ in history}
    chosen: dict[tuple[object, ...], Config] = {}
    for config in (*map(space.nearest, seeds), space.default):
        if _key(config) not in tried and len(chosen) < count:
            chosen.setdefault(_key(config), config)
    if len(chosen) == count:
        return list(chosen.values())
    fresh = [config for config in space if _key(config) not in tried]
    if len(fresh) <= count:
        return fresh
    rest = [config for config in fresh if _key(config) not in chosen]
    known = [*(config for config, _ in history), *chosen.values()]
    spread = min(max(0, SPREAD - len(known)), count - len(chosen))
    for config in _spread(space, rest, known, spread, seed):
        chosen[_key(config)] = config
    if len(chosen) < count and history:
        rest = [config for config in rest if _key(config) not in chosen]
        for config in _promising(space, rest, history, count - len(chosen), seed):
            chosen[_key(config)] = config
    return list(chosen.values())


def expected_gain(history: History, *, space_size: float, floor_s: float | None) -> float:
    """The share of the best time that further search may still save, 0 when nothing is left.

    floor_s  no config can be faster, seconds; None when unknown

    Each improvement is a hint at the next; it fades with every trial since, and with the part of
    the space that is already measured. Never more than what lies above the floor. While nothing has
    run, the first guess fades likewise.
    """
    best_s, gain = math.inf, GUESS
    for _, time_s in history:
        gain *= FADE
        if time_s is not None and time_s < best_s:
            if best_s < math.inf:
                gain = max(gain, 1 - time_s / best_s)
            best_s = time_s
    gain *= max(0.0, 1 - len(history) / space_size)
    room = 1.0 if floor_s is None else 1 - floor_s / best_s
    return min(gain, room) if room > 1 - DONE else 0.0


def _key(config: Config) -> tuple[object, ...]:
    return tuple(sorted(config.items()))


def _places(space: Space, configs: Sequence[Config]) -> NDArray[np.float64]:
    """Every config as a point of the unit cube, by the position of its choices."""
    scale = [max(1, len(knob.choices) - 1) for knob in space.knobs]
    rows = [[knob.choices.index(config[knob.name]) for knob in space.knobs] for config in configs]
    return np.array(rows, dtype=np.float64).reshape(len(configs), -1) / scale


def _spread(
    space: Space, candidates: Sequence[Config], known: Sequence[Config], count: int, seed: int
) -> list[Config]:
    """`count` candidates, each as far as can be from those known and from each other."""
    if count == 0:
        return []
    places = _places(space, candidates)
    inside = [config for config in known if config in space]
    away = np.full(len(candidates), np.inf)
    for place in _places(space, inside):
        away = np.minimum(away, ((places - place) ** 2).sum(axis=1))
    jitter = np.random.default_rng(seed).uniform(0, 1e-3, len(candidates))
    picked = []
    for _ in range(min(count, len(candidates))):
        index = int(np.argmax(np.minimum(away, 1e6) + jitter))
        picked.append(candidates[index])
        away = np.minimum(away, ((places - places[index]) ** 2).sum(axis=1))
        away[index] = -1.0
    return picked


def _promising(
    space: Space, candidates: Sequence[Config], history: History, count: int, seed: int
) -> list[Config]:
    """The candidates that models of the history think fastest, and some they disagree on."""
    usable = [(config, time_s) for config, time_s in history if config in space]
    if all(time_s is None for _, time_s in usable):
        return _spread(space, candidates, [config for config, _ in usable], count, seed)
    scores = _score(space, usable, candidates, seed)
    liked = np.argsort(-scores.mean(axis=0), kind="stable")
    hopeful = liked[: max(count, int(HOPEFUL * len(liked)))]
    doubted = hopeful[np.argsort(-scores.std(axis=0)[hopeful], kind="stable")]
    picked = dict.fromkeys([*doubted[: round(UNSURE_SHARE * count)], *liked])
    return [candidates[index] for index in list(picked)[:count]]


def _score(
    space: Space, history: History, candidates: Sequence[Config], seed: int
) -> NDArray[np.float64]:
    """How each of MODELS models ranks each candidate, higher is faster; (MODELS, candidates).

    Pairs are ranked rather than times fitted: a search needs to know what is faster, not by how
    much, and a failure is simply the slowest.
    """
    try:
        import xgboost
    except ImportError:  # on a borrowed machine it, or the SciPy that it needs, may be missing
        return _score_by_neighbours(space, history, candidates, seed)
    seconds = np.array([math.inf if time_s is None else time_s for _, time_s in history])
    slower = (seconds[:, None] < seconds[None, :]).sum(axis=1)
    rows = xgboost.DMatrix(_features(space, [config for config, _ in history]), slower)
    rows.set_group([len(history)])
    asked = xgboost.DMatrix(_features(space, candidates))
    scores = []
    for number in range(MODELS):
        settings = {
            "objective": "rank:pairwise",
            "ndcg_exp_gain": False,
            "max_depth": 4,
            "eta": 0.2,
            "subsample": 0.8,
            "lambda": 0.1,
            "nthread": 1,
            "seed": seed * MODELS + number,
        }
        scores.append(xgboost.train(settings, rows, num_boost_round=60).predict(asked))
    return np.array(scores, dtype=np.float64)


def _score_by_neighbours(
    space: Space, history: History, candidates: Sequence[Config], seed: int
) -> NDArray[np.float64]:
    """The same without XGBoost: as fast as the nearest configs of a part of the history."""
    seconds = np.array([math.inf if time_s is None else time_s for _, time_s in history])
    slower = (seconds[:, None] < seconds[None, :]).mean(axis=1)
    known = np.array([space.features(config) for config, _ in history], dtype=np.float64)
    asked = np.array([space.features(config) for config in candidates], dtype=np.float64)
    scale = np.maximum(known.std(axis=0), 1e-9)
    apart = (((asked[:, None] - known[None]) / scale) ** 2).sum(axis=2)
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(MODELS):
        part = rng.permutation(len(history))[: max(1, 3 * len(history) // 4)]
        weights = 1 / (0.1 + apart[:, part])
        nearest = np.argsort(apart[:, part], axis=1)[:, :NEIGHBOURS]
        chosen = np.take_along_axis(weights, nearest, axis=1)
        scores.append((chosen * slower[part][nearest]).sum(axis=1) / chosen.sum(axis=1))
    return np.array(scores, dtype=np.float64)


def _features(space: Space, configs: Sequence[Config]) -> NDArray[np.float64]:
    """A row a config: its knobs, and the products of each two, such as the area of a tile."""
    rows = np.array([space.features(config) for config in configs], dtype=np.float64)
    pairs = [
        rows[:, i] * rows[:, j] for i in range(rows.shape[1]) for j in range(i + 1, rows.shape[1])
    ]
    return np.column_stack([rows, *pairs])
