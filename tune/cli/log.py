"""The verbs of `log`: what records say, and how files of them are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cli.arguments import Parser, output
from tune.cli.nouns import write_json

if TYPE_CHECKING:
    import argparse


def add_to(known: Any) -> None:
    """Add `log` and its verbs to those that are known."""
    verbs = known.add_parser("log", help="read tuning logs").add_subparsers(
        required=True, metavar="what", parser_class=Parser
    )
    one = verbs.add_parser("show", parents=[output()], help="the best of every workload")
    one.add_argument("--log", type=Path, required=True, metavar="PATH")
    one.set_defaults(verb=show)


def show(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import tuning_table

    rows, skipped = pipeline.show(options.log)
    print(tuning_table(rows))
    print(f"log: {options.log}" + (f", {skipped} unreadable lines skipped" if skipped else ""))
    write_json(options, rows)
