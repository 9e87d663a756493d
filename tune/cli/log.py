"""The verbs of `log`: what records say, and how files of them are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cli.arguments import Parser, output, share, where, which
from tune.cli.nouns import model_of, place_of, write_json

if TYPE_CHECKING:
    import argparse


def add_to(known: Any) -> None:
    """Add `log` and its verbs to those that are known."""
    verbs = known.add_parser("log", help="read and keep tuning logs").add_subparsers(
        required=True, metavar="what", parser_class=Parser
    )

    def verb(name: str, function: Any, parents: list[Any], text: str) -> Any:
        parser = verbs.add_parser(name, parents=parents, help=text)
        parser.set_defaults(verb=function)
        return parser

    result = output()
    one = verb("show", show, [result], "the best of every workload")
    one.add_argument("--log", type=Path, required=True, metavar="PATH")

    one = verb("check", check, [where(), which(), result], "whether every layer has its record")
    one.add_argument("--allow-estimates", action="store_true", help="count estimates, too")

    one = verb("best", best, [result], "the records that decide; with -o, as a log of their own")
    one.add_argument("--log", type=Path, required=True, metavar="PATH")
    one.add_argument("-o", "--output", type=Path, metavar="NEW", help="a file to add them to")

    one = verb("merge", merge, [], "one log of several, without repetitions")
    one.add_argument("logs", type=Path, nargs="+", metavar="PATH")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="PATH")

    one = verb("diff", diff, [result], "what got faster or slower from one log to another")
    one.add_argument("old", type=Path, metavar="OLD")
    one.add_argument("new", type=Path, metavar="NEW")
    one.add_argument("--threshold", type=share, default=0.05, metavar="X%", help="default: 5%%")

    one = verb("prune", prune, [], "a copy without what no longer serves")
    one.add_argument("--log", type=Path, required=True, metavar="PATH")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="NEW")

    one = verb("stats", stats, [result], "what a log holds, in numbers")
    one.add_argument("--log", type=Path, required=True, metavar="PATH")

    one = verb("export", export, [], "a table of all records, comma-separated")
    one.add_argument("--log", type=Path, required=True, metavar="PATH")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.csv")

    one = verb("import", import_, [], "add the records of such a table")
    one.add_argument("table", type=Path, metavar="FILE.csv")
    one.add_argument("--log", type=Path, required=True, metavar="PATH")


def show(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import tuning_table

    rows, skipped = pipeline.show(options.log)
    print(tuning_table(rows))
    print(f"log: {options.log}" + _and_skipped(skipped, "unreadable lines"))
    write_json(options, rows)


def check(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import plan_summary

    model = model_of(options)
    target, log, site = place_of(options)
    checked = pipeline.check(
        model,
        target,
        log,
        threads=site.threads,
        allow_estimates=options.allow_estimates,
    )
    print(plan_summary(checked))
    print(f"log: {checked['log']}")
    write_json(options, checked)


def best(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.files import records_table

    records = pipeline.best(options.log)
    print(records_table(records))
    if options.output is not None:
        added = pipeline.add(records, options.output)
        print(f"log: {options.output}, {added} records added")
    write_json(options, records)


def merge(options: argparse.Namespace) -> None:
    from tune import pipeline

    added, skipped = pipeline.merge(options.logs, options.output)
    print(f"log: {options.output}, {added} records added" + _and_skipped(skipped, "lines"))


def diff(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.files import difference_table

    rows = pipeline.diff(options.old, options.new, options.threshold)
    print(difference_table(rows))
    write_json(options, rows)


def prune(options: argparse.Namespace) -> None:
    from tune import pipeline

    kept, left_out = pipeline.prune(options.log, options.output)
    print(f"log: {options.output}, {kept} records kept, {left_out} left out")


def stats(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report.files import facts_table

    facts = pipeline.stats(options.log)
    print(facts_table(facts))
    print(f"log: {options.log}")
    write_json(options, facts)


def export(options: argparse.Namespace) -> None:
    from tune import pipeline

    print(f"table: {options.output}, {pipeline.write_csv(options.log, options.output)} records")


def import_(options: argparse.Namespace) -> None:
    from tune import pipeline

    added, skipped = pipeline.read_csv(options.table, options.log)
    print(f"log: {options.log}, {added} records added" + _and_skipped(skipped, "rows"))


def _and_skipped(count: int, what: str) -> str:
    return f", {count} {what} skipped" if count else ""
