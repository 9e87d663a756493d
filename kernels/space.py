"""A search space as data: knobs, and the constraints that make a choice of all of them valid.

A config is a flat dict that reads well in a log. Spaces here are small, a few hundred configs: what
cannot be good is excluded by whoever wrote the space, so that no search has to learn it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from operator import itemgetter

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
        names = [knob.name for knob in self.knobs]
        for values in product(*(knob.choices for knob in self.knobs)):
            config = dict(zip(names, values, strict=True))
            if self._valid(config):
                yield config

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
        away = []
        for knob in self.knobs:
            wanted = _position(knob, config.get(knob.name))
            away.append([abs(place - wanted) for place in range(len(knob.choices))])
        steps = map(sum, product(*away))
        choices = product(*(knob.choices for knob in self.knobs))
        for _, values in sorted(zip(steps, choices, strict=True), key=itemgetter(0)):
            found = {knob.name: value for knob, value in zip(self.knobs, values, strict=True)}
            if self._valid(found):
                return found
        raise ValueError(
            f"no config meets the constraints {[c.name for c in self.constraints]}; "
            f"expected at least one; widen the choices of {[k.name for k in self.knobs]}"
        )

    def _valid(self, config: Config) -> bool:
        return all(constraint.holds(config) for constraint in self.constraints)


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
