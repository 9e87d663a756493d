"""What a program printed, as the one line of it that fits an error."""

from __future__ import annotations

MOST = 300  # characters


def first_line(text: str, otherwise: str) -> str:
    """Where compilers and linkers say what is wrong. Of nothing, `otherwise`."""
    return next(iter(_lines(text)), otherwise)


def last_line(text: str, otherwise: str) -> str:
    """Where a trace, or a program that does one thing after the other, does."""
    return next(reversed(_lines(text)), otherwise)


def _lines(text: str) -> list[str]:
    return [line.strip()[:MOST] for line in text.splitlines() if line.strip()]
