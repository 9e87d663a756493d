"""Every verb and its options."""

from __future__ import annotations

from pathlib import Path

from targets import TARGETS
from tune.cli import log, verbs
from tune.cli.arguments import (
    EFFORT_HELP,
    INPUT_HELP,
    MEMORY_HELP,
    PROBE_HELP,
    THREADS_HELP,
    TOLERANCE_HELP,
    TRACED_HELP,
    WEIGHTS_HELP,
    Parser,
    add_kernels,
    board,
    built,
    count,
    counts,
    duration,
    harvested,
    names,
    output,
    port,
    rate,
    share,
    where,
    which,
)
from tune.database import ESTIMATORS

PROGRAM = "python -m tune"


def parser() -> Parser:
    top = Parser(
        prog=PROGRAM,
        description="Tune, build, run and compare MobileNet-class networks.",
        epilog="Exit status: 0 done; 1 a check failed; 2 wrong request; 3 something is missing; "
        "4 a log cannot be used.",
    )
    known = top.add_subparsers(required=True, metavar="verb", parser_class=Parser)
    machine, network, library, result = where(), which(), built(), output()

    run = known.add_parser(
        "run", parents=[machine, network, result], help="measure configs into the log"
    )
    run.add_argument("--budget", type=duration, metavar="TIME", help="stop after, e.g. 90s, 5m, 1h")
    run.add_argument("--trials", type=count, metavar="N", help="measure at most N configs")
    run.add_argument("--effort", choices=("quick", "full", "max"), default="full", help=EFFORT_HELP)
    add_kernels(run)
    run.add_argument("--estimator", choices=ESTIMATORS, help="judge by this instead of a clock")
    run.set_defaults(verb=verbs.run)

    build = known.add_parser("build", parents=[machine, network, result], help="write the .so")
    build.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS_HELP)
    build.add_argument("--input", choices=("float", "uint8"), default="float", help=INPUT_HELP)
    build.add_argument("--require-tuned", action="store_true", help="fail if a layer has no record")
    build.add_argument(
        "--allow-estimates", action="store_true", help="with --require-tuned, count estimates, too"
    )
    build.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.so")
    build.set_defaults(verb=verbs.build)

    explain = known.add_parser(
        "explain", parents=[machine, network, result], help="why each layer is computed as it is"
    )
    explain.add_argument("--code", action="store_true", help="and what its code consists of")
    explain.set_defaults(verb=verbs.explain)

    classify = known.add_parser("classify", parents=[board()], help="name what is on photos")
    classify.add_argument("--lib", type=Path, required=True, metavar="FILE.so")
    classify.add_argument("--threads", type=count, metavar="N", help="default: as built")
    classify.add_argument("photo", type=Path, nargs="+")
    classify.set_defaults(verb=verbs.classify)

    bench = known.add_parser(
        "bench", parents=[machine, network, library, result], help="compare with peers"
    )
    bench.add_argument("--peers", type=names, metavar="A,B", help="default: all that are installed")
    bench.add_argument("--rounds", type=count, default=15, metavar="N", help="default: 15")
    bench.set_defaults(verb=verbs.bench)

    profile = known.add_parser(
        "profile",
        parents=[machine, network, library, result],
        help="what each layer takes in the library",
    )
    profile.add_argument("--rounds", type=count, default=15, metavar="N", help=TRACED_HELP)
    profile.set_defaults(verb=verbs.profile)

    verify = known.add_parser(
        "verify", parents=[machine, network, result], help="measure recorded winners again"
    )
    verify.add_argument("--tolerance", type=share, default=0.1, metavar="X%", help=TOLERANCE_HELP)
    verify.add_argument("--estimator", choices=ESTIMATORS, help="verify its estimates instead")
    verify.set_defaults(verb=verbs.verify)

    package = known.add_parser(
        "package",
        parents=[machine, network, library, result],
        help="a folder that runs without Python",
    )
    package.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    package.set_defaults(verb=verbs.package)

    harvest = known.add_parser(
        "harvest", parents=[harvested()], help="all that a visit to a GPU can bring, into a folder"
    )
    harvest.set_defaults(verb=verbs.harvest, rpc=None)

    emulated = known.add_parser("board", help="an emulated arm64 board on this machine")
    emulated.add_argument("action", choices=("start", "stop", "status"))
    emulated.add_argument("--port", type=port, default=9090, metavar="N", help="default: 9090")
    emulated.set_defaults(verb=verbs.board)

    model = known.add_parser(
        "model", parents=[network], help="print layers, parameters, multiply-adds"
    )
    model.add_argument("--body", choices=("separable", "full", "shallow"))
    model.set_defaults(verb=verbs.show_model)

    roofline = known.add_parser(
        "roofline", parents=[network, result], help="the least time on a GPU, or on more cores"
    )
    roofline.add_argument("--target", choices=tuple(TARGETS), default="cuda", help="default: cuda")
    roofline.add_argument("--device", metavar="NAME", help="a known machine; default: this one")
    roofline.add_argument("--threads", type=counts, metavar="N,N", help=THREADS_HELP)
    roofline.add_argument("--memory", type=rate, metavar="GB/s", help=MEMORY_HELP)
    roofline.add_argument("--probe", action="store_true", help=PROBE_HELP)
    roofline.add_argument(
        "--log", type=Path, metavar="PATH", help="its records stand beside the floors"
    )
    roofline.set_defaults(verb=verbs.roofline, rpc=None)

    doctor = known.add_parser("doctor", help="what this machine has of the tools needed")
    doctor.set_defaults(verb=verbs.doctor)

    targets = known.add_parser("targets", help="the known machines")
    targets.set_defaults(verb=verbs.list_targets)

    log.add_to(known)
    return top
