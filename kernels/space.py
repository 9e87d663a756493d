"""A search space as data: knobs, and the constraints that make a choice of all of them valid.

A config is a flat dict that reads well in a log. Spaces here are small, some thousand configs: what
cannot be good is excluded by whoever wrote the space, so that no search has to learn it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Value = int | str
Config = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Knob:
    """One decision: its name, the choices in a meaningful order, and the sane one."""

    name: str
    choices: tuple[Value, ...]
    default: Value

    def __post_init__(self) -> None:
        if self.default not in self.choices:
            raise ValueError(
                f"knob {self.name}: default {self.default!r} is not among its choices; "
                f"expected one of {self.choices}"
            )


@dataclass(frozen=True, slots=True)
class Constraint:
    """A named condition that every valid config meets."""

    name: str
    holds: Callable[[Config], bool]


class _Missing(Exception):
    """A constraint looks at a knob that has no choice yet."""


class _Begun(Config):
    """A config without its last knobs. Whoever looks at one of these, or at all, is told so."""

    def __init__(self, known: Config, missing: Sequence[str]) -> None:
        super().__init__(known)
        self._missing = missing

    def get(self, key: str, default: Any = None) -> Any:
        if key in self._missing:
            raise _Missing
        return super().get(key, default)

    def __missing__(self, key: str) -> Value:
        raise _Missing if key in self._missing else KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self.get(str(key)) is not None

    def _all(self) -> Any:
        raise _Missing

    __iter__ = __len__ = keys = values = items = _all


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All configs that take one choice of each knob and meet each constraint."""

    knobs: tuple[Knob, ...]
    constraints: tuple[Constraint, ...] = ()

    @property
    def default(self) -> Config:
        """The config of defaults, or the nearest valid one. ValueError for an empty space."""
        return self.nearest({knob.name: knob.default for knob in self.knobs})

    def __iter__(self) -> Iterator[Config]:
        """Every valid config, in the order of the choices."""
        free = {knob.name: dict.fromkeys(knob.choices, 0) for knob in self.knobs}
        return self._completed({}, self.constraints, free, 0)

    def _completed(
        self,
        config: Config,
        constraints: Sequence[Constraint],
        away: Mapping[str, Mapping[Value, int]],
        steps: int,
    ) -> Iterator[Config]:
        """Every valid config that begins like this one.

        constraints  those that its first knobs have not settled
        away         steps to each choice of each knob
        steps        that its other knobs take at most, all together

        What breaks one of them by its first knobs is left out at once: of a hundred thousand
        combinations a few thousand may be valid.
        """
        missing = [knob.name for knob in self.knobs[len(config) :]]
        if not missing:
            if all(constraint.holds(config) for constraint in constraints):
                yield config
            return
        begun, left = _Begun(config, missing), []
        for constraint in constraints:
            try:
                if not constraint.holds(begun):
                    return
            except _Missing:
                left.append(constraint)
        knob = self.knobs[len(config)]
        for choice, step in away[knob.name].items():
            if step <= steps:
                longer = {**config, knob.name: choice}
                yield from self._completed(longer, left, away, steps - step)

    def __contains__(self, config: object) -> bool:
        return isinstance(config, dict) and self.refusal(config) is None

    def refusal(self, config: Mapping[str, Value]) -> str | None:
        """Why `config` is not in the space, or None when it is."""
        names = {knob.name for knob in self.knobs}
        if set(config) != names:
            return f"knobs {sorted(config)} given, {sorted(names)} expected"
        for knob in self.knobs:
            if config[knob.name] not in knob.choices:
                return f"{knob.name}={config[knob.name]!r} is not among {knob.choices}"
        broken = [c.name for c in self.constraints if not c.holds(dict(config))]
        return f"constraint broken: {', '.join(broken)}" if broken else None

    def features(self, config: Config) -> list[float]:
        """A config as numbers for a cost model: a number as it is, a word as its position."""
        row = []
        for knob in self.knobs:
            value = config[knob.name]
            row.append(float(value if isinstance(value, int) else knob.choices.index(value)))
        return row

    def nearest(self, config: Mapping[str, Value]) -> Config:
        """The valid config with the fewest steps from `config`, choice by choice.

        Used to carry a config over from another shape or device; knobs it lacks count from their
        default. ValueError for an empty space.
        """
        away: dict[str, dict[Value, int]] = {}
        for knob in self.knobs:
            wanted = _position(knob, config.get(knob.name))
            steps = (abs(place - wanted) for place in range(len(knob.choices)))
            away[knob.name] = dict(zip(knob.choices, steps, strict=True))
        for most in range(1 + sum(max(steps.values()) for steps in away.values())):
            for found in self._completed({}, self.constraints, away, most):
                return found
        raise ValueError(
            f"no config meets the constraints {[c.name for c in self.constraints]}; "
            f"expected at least one; widen the choices of {[k.name for k in self.knobs]}"
        )


def _position(knob: Knob, value: Value | None) -> int:
    """Where `value` stands, or would stand, among the knob's choices."""
    if value in knob.choices:
        return knob.choices.index(value)
    if isinstance(value, int):
        numbers = [choice for choice in knob.choices if isinstance(choice, int)]
        if numbers:
            return knob.choices.index(min(numbers, key=lambda choice: abs(choice - value)))
    return knob.choices.index(knob.default)


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`, the last one perhaps in part."""
    return -(-size // block)
