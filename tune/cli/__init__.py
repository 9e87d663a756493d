"""The command line: strings in, nouns out, rows printed, exit status. Nothing is decided here."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tune.cli.nouns import check_json
from tune.cli.parser import parser
from tune.errors import SeptuneError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Errors of ours become one line on stderr."""
    try:
        options = parser().parse_args(arguments)
        check_json(options)
        verb: Callable[[argparse.Namespace], None] = options.verb
        verb(options)
    except SeptuneError as error:
        print(f"septune: {error}", file=sys.stderr)
        return error.exit_status
    except ValueError as error:  # a noun refused its fields: the request was wrong
        print(f"septune: {error}", file=sys.stderr)
        return UsageError.exit_status
    except KeyboardInterrupt:
        print("septune: stopped; every finished record is in the log", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
