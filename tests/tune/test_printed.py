"""The one line of what a program printed."""

from __future__ import annotations

from tune.printed import MOST, first_line, last_line


def test_lines_that_say_nothing_do_not_count() -> None:
    assert first_line("\n  ld: no room \nexit 1\n\n", "status 1") == "ld: no room"
    assert last_line("Traceback:\n  OSError: no room\n \n", "status 1") == "OSError: no room"
    assert first_line(" \n", "status 1") == last_line("", "status 1") == "status 1"
    assert first_line("x" * 999, "") == last_line("x" * 999, "") == "x" * MOST
