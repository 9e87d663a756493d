"""The command line: strings in, nouns out, rows printed, exit status. Nothing is decided here."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from targets import TARGETS
from targets.target import Endpoint
from tune.database import ESTIMATORS
from tune.errors import SeptuneError, SetupError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from targets.target import Target
    from tune.mobilenet import MobileNet

PROGRAM = "python -m tune"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Errors of ours become one line on stderr."""
    try:
        options = _parser().parse_args(arguments)
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


def _run(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import progress_line, tuning_table

    target = _target(options)
    log = pipeline.Log.at(options.log, target)
    live = sys.stderr.isatty()
    threads = 1 if options.estimator else _threads(options)
    for event in pipeline.tune(
        _model(options).layers,
        target,
        log,
        site=_site(options),
        budget_s=options.budget,
        trials=options.trials,
        effort=options.effort,
        kernels=options.kernel,
        seed=options.seed,
    ):
        line, threads = progress_line(event), event.record.threads
        print(f"\r\x1b[K{line[:100]}" if live else line, end="" if live else "\n", file=sys.stderr)
    if live:
        print(file=sys.stderr)
    rows = pipeline.winners(
        _model(options).layers, target, log, threads=threads, estimator=options.estimator
    )
    print(tuning_table(rows))
    print(f"log: {log.path}")
    _write_json(options, rows)


def _build(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import plan_summary

    target = _target(options)
    manifest = pipeline.build(
        _model(options),
        target,
        pipeline.Log.at(options.log, target),
        threads=_threads(options),
        weights=options.weights,
        seed=options.seed,
        output=options.output,
        require_tuned=options.require_tuned,
        allow_estimates=options.allow_estimates,
    )
    print(plan_summary(manifest))
    print(f"library: {options.output}")
    _write_json(options, manifest)


def _classify(options: argparse.Namespace) -> None:
    from tune import pipeline

    for photo, likeliest in pipeline.classify(
        options.lib, options.photo, options.threads, options.rpc, options.rpc_key
    ):
        print(photo)
        for probability, label in likeliest:
            print(f"  {probability:6.3f}  {label}")


def _bench(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import comparison_table, tally_table

    target = _target(options)
    result = pipeline.bench(
        _model(options),
        target,
        pipeline.Log.at(options.log, target),
        site=_site(options),
        weights=options.weights,
        seed=options.seed,
        library=options.lib,
        peers=options.peers,
        rounds=options.rounds,
        progress=lambda line: print(line, file=sys.stderr),
    )
    print(comparison_table(result) if "floor_s" in result else tally_table(result))
    _write_json(options, result)


def _show_model(options: argparse.Namespace) -> None:
    from tune.report import model_table

    print(model_table(_model(options)))


def _show_log(options: argparse.Namespace) -> None:
    from tune import pipeline
    from tune.report import tuning_table

    rows, skipped = pipeline.show(options.log)
    print(tuning_table(rows))
    print(f"log: {options.log}" + (f", {skipped} unreadable lines skipped" if skipped else ""))
    _write_json(options, rows)


def _doctor(options: argparse.Namespace) -> None:
    from tune.doctor import examine
    from tune.report import findings_table

    findings = examine()
    print(findings_table(findings))
    lacking = [finding for finding in findings if finding.needed and finding.found is None]
    if lacking:
        raise SetupError(f"{lacking[0].what}: {lacking[0].remedy}")


def _list_targets(options: argparse.Namespace) -> None:
    from targets import machines
    from tune.report import devices_table

    print(devices_table([d for kind in TARGETS for d in machines(kind).DEVICES.values()]))


def _board_verb(options: argparse.Namespace) -> None:
    from tune import board

    def progress(line: str) -> None:
        print(line, file=sys.stderr)

    match options.action:
        case "start":
            state = board.start(options.port, progress)
        case "stop":
            state = board.stop(options.port)
        case _:
            state = board.status(options.port)
    print(f"board at {state.address}: {'off' if state.pid is None else f'on, process {state.pid}'}")
    if state.pid is not None:
        print(f"log: {state.log}")


def _target(options: argparse.Namespace) -> Target:
    """The machine asked for: a known device by name, else the board's own, else this one."""
    from targets import machines

    kind = machines(options.target)
    device: Target
    if options.device is not None:
        if options.device not in kind.DEVICES:
            raise UsageError(
                f"device {options.device!r} is not known; expected one of "
                f"{', '.join(kind.DEVICES)}; leave --device out for this machine"
            )
        device = kind.DEVICES[options.device]
    elif options.rpc is not None:
        from tune.runners.rpc import device_at

        device = device_at(options.target, options.rpc, key=options.rpc_key)
    else:
        device = kind.host()
    return device


def _site(options: argparse.Namespace) -> Any:
    from tune.pipeline import Site

    return Site(
        endpoint=options.rpc,
        key=options.rpc_key,
        estimator=getattr(options, "estimator", None),
        threads=options.threads,
        notice=lambda line: print(f"septune: {line}", file=sys.stderr),
    )


def _threads(options: argparse.Namespace) -> int:
    return options.threads or os.cpu_count() or 1


def _model(options: argparse.Namespace) -> MobileNet:
    from tune.mobilenet import MobileNet

    return MobileNet(
        alpha=options.alpha,
        resolution=options.resolution,
        batch=options.batch,
        classes=options.classes,
        variant=options.variant,
        dtype=options.dtype,
        body=getattr(options, "body", "separable"),
    )


def _write_json(options: argparse.Namespace, value: Any) -> None:
    if options.json is not None:
        try:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(value, indent=1) + "\n")
        except OSError as error:
            raise UsageError(
                f"cannot write {options.json}: {error.strerror}; expected a writable path; "
                f"choose another --json"
            ) from None
        print(f"json: {options.json}")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Tune, build, run and compare MobileNet-class networks.",
        epilog="Exit status: 0 done; 1 a check failed; 2 wrong request; 3 something is missing; "
        "4 a log cannot be used.",
    )
    verbs = parser.add_subparsers(required=True, metavar="verb", parser_class=_Parser)
    where, which, output = _where(), _which(), _output()

    run = verbs.add_parser(
        "run", parents=[where, which, output], help="measure configs into the log"
    )
    run.add_argument(
        "--budget", type=_duration, metavar="TIME", help="stop after, e.g. 90s, 5m, 1h"
    )
    run.add_argument("--trials", type=_count, metavar="N", help="measure at most N configs")
    run.add_argument("--effort", choices=("quick", "full", "max"), default="full", help=EFFORT_HELP)
    run.add_argument(
        "--kernel", action="append", metavar="NAME", help="only this kernel; repeatable"
    )
    run.add_argument("--estimator", choices=ESTIMATORS, help="judge by this instead of a clock")
    run.set_defaults(verb=_run)

    build = verbs.add_parser("build", parents=[where, which, output], help="write the .so")
    build.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS_HELP)
    build.add_argument("--require-tuned", action="store_true", help="fail if a layer has no record")
    build.add_argument(
        "--allow-estimates", action="store_true", help="with --require-tuned, count estimates, too"
    )
    build.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.so")
    build.set_defaults(verb=_build)

    classify = verbs.add_parser("classify", parents=[_board()], help="name what is on photos")
    classify.add_argument("--lib", type=Path, required=True, metavar="FILE.so")
    classify.add_argument("--threads", type=_count, metavar="N", help="default: as built")
    classify.add_argument("photo", type=Path, nargs="+")
    classify.set_defaults(verb=_classify)

    bench = verbs.add_parser("bench", parents=[where, which, output], help="compare with peers")
    bench.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS_HELP)
    bench.add_argument("--lib", type=Path, metavar="FILE.so", help="default: built from the log")
    bench.add_argument(
        "--peers", type=_names, metavar="A,B", help="default: all that are installed"
    )
    bench.add_argument("--rounds", type=_count, default=15, metavar="N", help="default: 15")
    bench.set_defaults(verb=_bench)

    board = verbs.add_parser("board", help="an emulated arm64 board on this machine")
    board.add_argument("action", choices=("start", "stop", "status"))
    board.add_argument("--port", type=_count, default=9090, metavar="N", help="default: 9090")
    board.set_defaults(verb=_board_verb)

    model = verbs.add_parser(
        "model", parents=[which], help="print layers, parameters, multiply-adds"
    )
    model.add_argument("--body", choices=("separable", "full", "shallow"), default="separable")
    model.set_defaults(verb=_show_model)

    doctor = verbs.add_parser("doctor", help="what this machine has of the tools needed")
    doctor.set_defaults(verb=_doctor)

    targets = verbs.add_parser("targets", help="the known machines")
    targets.set_defaults(verb=_list_targets)

    log = verbs.add_parser("log", help="read tuning logs").add_subparsers(
        required=True, metavar="what", parser_class=_Parser
    )
    show = log.add_parser("show", parents=[output], help="the best of every workload")
    show.add_argument("--log", type=Path, required=True, metavar="PATH")
    show.set_defaults(verb=_show_log)
    return parser


WEIGHTS_HELP = "checkpoint, .safetensors or .pt; default: ImageNet where it fits, else random"
EFFORT_HELP = "quick, full, or max, which stops only when every space is measured; default: full"


def _board() -> _Parser:
    options = _Parser(add_help=False)
    options.add_argument(
        "--rpc", type=_endpoint, metavar="HOST:PORT", help="a board, or a tracker of boards"
    )
    options.add_argument(
        "--rpc-key", default="", metavar="KEY", help="all boards that serve it at the tracker"
    )
    return options


def _where() -> _Parser:
    options = _Parser(add_help=False, parents=[_board()])
    options.add_argument("--target", choices=tuple(TARGETS), default="x86")
    options.add_argument("--device", metavar="NAME", help="a known machine; default: this one")
    options.add_argument("--threads", type=_count, metavar="N", help="default: all cores")
    options.add_argument(
        "--log",
        "--from-log",
        type=Path,
        metavar="PATH",
        help="default: logs/TARGET/DEVICE.jsonl, with the other devices' logs as hints",
    )
    options.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    return options


def _which() -> _Parser:
    options = _Parser(add_help=False)
    options.add_argument(
        "--alpha", type=float, default=1.0, metavar="X", help="width; default: 1.0"
    )
    options.add_argument("--resolution", type=_count, default=224, metavar="N", help="default: 224")
    options.add_argument("--batch", type=_count, default=1, metavar="N", help="default: 1")
    options.add_argument("--classes", type=_count, default=1001, metavar="N", help="default: 1001")
    options.add_argument(
        "--variant", choices=("tf", "torch"), default="tf", help="padding, epsilon"
    )
    options.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    return options


def _output() -> _Parser:
    options = _Parser(add_help=False)
    options.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return options


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; expected a whole number from 1 up")
    return int(text)


def _duration(text: str) -> float:
    """Seconds in a text such as 90s, 5m or 1.5h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; expected e.g. 90s, 5m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
