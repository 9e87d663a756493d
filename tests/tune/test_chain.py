"""Walks through short pieces of code, whose rounds of loads one can count by eye."""

from __future__ import annotations

import pytest

from tune import sass
from tune.chain import Chain, chain

ONE_LOAD = "LDG.E.128 R4, desc[UR4][R2.64]", "FADD R8, R4, R4", "STG.E.128 [R2.64], R8", "EXIT"


def walked(*lines: str, loaded: float = 0.0, stored: float = 0.0, flops: float = 0.0) -> Chain:
    """Of one warp. An instruction stands at 16 times its number, as `BRA 0x10` wants it."""
    code = sass.parse(f"/*{16 * place:04x}*/ {line} ;" for place, line in enumerate(lines))
    return chain(code, 32, loaded_bytes=loaded, stored_bytes=stored, tensor_flops=flops)


def test_a_load_that_is_used_is_waited_for() -> None:
    found = walked(*ONE_LOAD)
    assert found.rounds == pytest.approx(1)
    assert 5 < found.cycles < 30


def test_a_load_that_nothing_uses_is_not() -> None:
    assert walked("LDG.E R4, desc[UR4][R2.64]", "FADD R8, R9, R9", "EXIT").rounds == 0


def test_loads_under_way_together_are_one_round() -> None:
    loads = ("LDG.E R4, desc[UR4][R2.64]", "LDG.E R5, desc[UR4][R2.64+0x80]")
    assert walked(*loads, "FADD R8, R4, R5", "EXIT").rounds == pytest.approx(1)


def test_a_load_behind_the_first_use_is_another_round() -> None:
    """As of a bias that is asked for when the sums are done."""
    late = ("LDG.E R5, desc[UR4][R2.64+0x80]", "FADD R9, R5, R8", "EXIT")
    found = walked("LDG.E R4, desc[UR4][R2.64]", "FADD R8, R4, R4", *late)
    assert found.rounds == pytest.approx(2)


def test_any_register_of_a_wide_load_is_waited_for() -> None:
    for register, rounds in (("R7", 1), ("R8", 0)):
        found = walked("LDG.E.128 R4, desc[UR4][R2.64]", f"FADD R12, {register}, R9", "EXIT")
        assert found.rounds == pytest.approx(rounds)


def test_a_register_that_is_reused_is_waited_for() -> None:
    """Loads that have to share a register wait for one another."""
    pair = ("LDG.E R4, desc[UR4][R2.64]", "FADD R8, R4, R8")
    assert walked(*pair, *pair, "EXIT").rounds == pytest.approx(2)


LOOP = ("LDG.E.128 R4, desc[UR4][R2.64]", "FADD R8, R4, R8", "@P0 BRA 0x0", "EXIT")


def test_a_loop_turns_as_often_as_it_must_load() -> None:
    """512 bytes a warp and turn; ten turns, of which the last few are not walked one by one."""
    found = walked(*LOOP, loaded=10 * 512)
    assert found.turns == (1.0, 10.0)
    assert found.rounds == pytest.approx(10)


def test_a_loop_that_multiplies_turns_as_often_as_that_takes() -> None:
    """Whatever it loads: taps that all threads load count once in what a program asks for."""
    product = ("HMMA.16816.F32 R12, R4, R8, R12", *LOOP)
    assert walked(*product, loaded=512, flops=8 * 4096).turns == (1.0, 8.0)


@pytest.mark.parametrize(("pending", "rounds"), [(0, 36), (1, 18), (3, 9)])
def test_copies_under_way_hide_rounds(pending: int, rounds: int) -> None:
    """Turns that wait until so many groups of copies are left, each asking for one more."""
    first = ("LDGSTS.E.128 [R1], desc[UR4][R2.64]", "LDGDEPBAR") * pending
    turn = ("LDGSTS.E.128 [R1], desc[UR4][R2.64]", "LDGDEPBAR", f"DEPBAR.LE SB0, 0x{pending:x}")
    loop = (*first, *turn, f"@P0 BRA 0x{16 * len(first):x}", "EXIT")
    found = walked(*loop, loaded=(36 + pending) * 512)
    assert found.turns == (1.0, 36.0)
    assert found.rounds == pytest.approx(rounds, abs=1)


def test_all_warps_share_the_load_and_store_unit() -> None:
    code = sass.parse(f"/*{16 * n:04x}*/ {line} ;" for n, line in enumerate(ONE_LOAD))
    one, eight = (
        chain(code, threads, loaded_bytes=0.0, stored_bytes=0.0, tensor_flops=0.0)
        for threads in (32, 256)
    )
    assert eight.cycles - one.cycles >= 7 * 4
    assert eight.rounds == one.rounds
