"""Search spaces: what is in them, what is not and why, and what lies nearest."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels.space import Config, Constraint, Knob, Space, Value

TILES = Space(
    knobs=(
        Knob("ROWS", (1, 2, 4, 8), 4),
        Knob("COLUMNS", (8, 16, 32), 16),
        Knob("ORDER", ("by row", "by column"), "by row"),
    ),
    constraints=(
        Constraint("sums fit registers", lambda c: int(c["ROWS"]) * int(c["COLUMNS"]) <= 64),
        Constraint("rows in order", lambda c: c["ROWS"] != 8 or c["ORDER"] == "by row"),
    ),
)


@st.composite
def knobs(draw: st.DrawFn, name: str) -> Knob:
    values = draw(
        st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True).map(sorted)
        | st.lists(st.sampled_from(("row", "column", "tile")), min_size=1, unique=True)
    )
    return Knob(name, tuple(values), draw(st.sampled_from(values)))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to three knobs; numbers may not sum to more than a limit, which may exclude all."""
    names = "ABC"[: draw(st.integers(1, 3))]
    limit = draw(st.integers(0, 150))
    return Space(
        knobs=tuple(draw(knobs(name)) for name in names),
        constraints=(
            Constraint("sum", lambda c: sum(v for v in c.values() if isinstance(v, int)) <= limit),
        ),
    )


def everything(space: Space) -> list[Config]:
    names = [knob.name for knob in space.knobs]
    return [
        dict(zip(names, values, strict=True))
        for values in product(*(knob.choices for knob in space.knobs))
    ]


def steps(space: Space, one: Config, other: Config) -> int:
    return sum(
        abs(knob.choices.index(one[knob.name]) - knob.choices.index(other[knob.name]))
        for knob in space.knobs
    )


@settings(deadline=None, derandomize=True)
@given(space=spaces())
def test_holds_what_meets_every_constraint(space: Space) -> None:
    valid = [c for c in everything(space) if all(rule.holds(c) for rule in space.constraints)]
    assert list(space) == valid
    for config in everything(space):
        assert (config in space) == (config in valid) == (space.refusal(config) is None)


@settings(deadline=None, derandomize=True)
@given(space=spaces(), data=st.data())
def test_nearest_is_valid_and_no_other_is_nearer(space: Space, data: st.DataObject) -> None:
    assume(list(space))
    wanted = data.draw(st.sampled_from(everything(space)))
    found = space.nearest(wanted)
    assert found in space
    assert steps(space, wanted, found) == min(steps(space, wanted, config) for config in space)
    if wanted in space:
        assert found == wanted


@settings(deadline=None, derandomize=True)
@given(space=spaces())
def test_default_is_the_valid_config_nearest_to_the_defaults(space: Space) -> None:
    assume(list(space))
    assert space.default == space.nearest({knob.name: knob.default for knob in space.knobs})
    assert space.default in space


values = st.integers(-5, 200) | st.text(max_size=5)


@settings(deadline=None, derandomize=True)
@given(space=spaces(), foreign=st.dictionaries(st.sampled_from("ABCD"), values))
def test_any_config_can_be_carried_over(space: Space, foreign: dict[str, Value]) -> None:
    assume(list(space))
    assert space.nearest(foreign) in space


@pytest.mark.parametrize(
    ("foreign", "nearest"),
    [
        ({}, {}),
        ({"ROWS": 3}, {"ROWS": 2}),
        ({"ROWS": 100, "COLUMNS": 8}, {"ROWS": 8, "COLUMNS": 8}),
        ({"ROWS": 1, "COLUMNS": 24}, {"ROWS": 1}),
        ({"ROWS": "many", "ORDER": 7, "DEPTH": 3}, {}),
        ({"ORDER": "by column"}, {"ORDER": "by column"}),
    ],
)
def test_nearest_to_a_config_from_elsewhere(foreign: Config, nearest: Config) -> None:
    default = {"ROWS": 4, "COLUMNS": 16, "ORDER": "by row"}
    assert TILES.nearest(foreign) == default | nearest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ROWS": 3}, "ROWS=3 is not among (1, 2, 4, 8)"),
        ({"ORDER": "zigzag"}, "ORDER='zigzag' is not among ('by row', 'by column')"),
        ({"COLUMNS": 32}, "constraint broken: sums fit registers"),
        (
            {"ROWS": 8, "ORDER": "by column"},
            "constraint broken: sums fit registers, rows in order",
        ),
        (
            {"DEPTH": 1},
            "knobs ['COLUMNS', 'DEPTH', 'ORDER', 'ROWS'] given, "
            "['COLUMNS', 'ORDER', 'ROWS'] expected",
        ),
    ],
)
def test_refusal_says_why(changes: Config, message: str) -> None:
    assert TILES.refusal(TILES.default) is None
    assert TILES.refusal(TILES.default | changes) == message


def test_lacking_knob_is_refused() -> None:
    assert (
        TILES.refusal({"ROWS": 4}) == "knobs ['ROWS'] given, ['COLUMNS', 'ORDER', 'ROWS'] expected"
    )


@pytest.mark.parametrize("other", [None, 7, "ROWS", [("ROWS", 4)], {"ROWS": 4}])
def test_what_is_no_config_is_not_in_it(other: Any) -> None:
    assert other not in TILES


def test_features_are_numbers_and_positions_of_words() -> None:
    assert TILES.features({"ROWS": 8, "COLUMNS": 8, "ORDER": "by column"}) == [8.0, 8.0, 1.0]


def test_empty_space_names_its_constraints() -> None:
    space = Space(
        knobs=(Knob("ROWS", (1, 2), 1),), constraints=(Constraint("never", lambda _: False),)
    )
    assert list(space) == []
    for ask in (lambda: space.default, lambda: space.nearest({"ROWS": 2})):
        with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
            ask()
        assert str(error.value) == (
            "no config meets the constraints ['never']; expected at least one; "
            "widen the choices of ['ROWS']"
        )


def test_default_must_be_a_choice() -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        Knob("ROWS", (1, 2), 3)
    assert str(error.value) == (
        "knob ROWS: default 3 is not among its choices; expected one of (1, 2)"
    )
