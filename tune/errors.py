"""The tree of errors. Each prints as one line and ends the command with its exit status.

    SeptuneError
    ├── GateError    1   a check that was asked for did not hold
    ├── UsageError   2   the request was wrong
    ├── SetupError   3   a tool, device or package is missing
    └── LogError     4   a log cannot be used

A message says what was wrong, with the value; what was expected; what to do.
"""

from __future__ import annotations


class SeptuneError(Exception):
    """Base of every error that a user may see."""

    exit_status = 1


class GateError(SeptuneError):
    """A missing record, a regression or a wrong result."""


class UsageError(SeptuneError):
    exit_status = 2


class SetupError(SeptuneError):
    exit_status = 3


class LogError(SeptuneError):
    exit_status = 4
