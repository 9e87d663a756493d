"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NoReturn

from targets import TARGETS, here
from targets.target import Endpoint
from tune.errors import UsageError

WEIGHTS_HELP = "checkpoint, .safetensors or .pt; default: ImageNet where it fits, else random"
INPUT_HELP = "images as value / 127.5 - 1, or as the bytes of a photo; default: float"
HERE_HELP = "default: this machine's kind of CPU"
CORES_HELP = "default: all cores; of a machine that is not here, as many as its records have"
THREADS_HELP = "of a CPU: counts to look at; default: 1,2,4,8,16,32,64"
MEMORY_HELP = "of a CPU: what its memory gives to all cores together; default: 460.8"
PROBE_HELP = "of a CPU: measure here what its cores cost one another"
TOLERANCE_HELP = "slowdown that is accepted; default: 10%%"
TRACED_HELP = "of 20 inferences, half of them traced; default: 15"
EFFORT_HELP = "quick, full, or max, which stops only when every space is measured; default: full"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")


def board() -> Parser:
    options = Parser(add_help=False)
    options.add_argument(
        "--rpc", type=endpoint, metavar="HOST:PORT", help="a board, or a tracker of boards"
    )
    options.add_argument(
        "--rpc-key", default="", metavar="KEY", help="all boards that serve it at the tracker"
    )
    return options


def where() -> Parser:
    options = Parser(add_help=False, parents=[board()])
    options.add_argument("--target", choices=tuple(TARGETS), default=here(), help=HERE_HELP)
    options.add_argument("--device", metavar="NAME", help="a known machine; default: this one")
    options.add_argument("--threads", type=count, metavar="N", help=CORES_HELP)
    options.add_argument(
        "--log",
        "--from-log",
        type=Path,
        metavar="PATH",
        help="default: logs/TARGET/DEVICE.jsonl, with the other devices' logs as hints",
    )
    options.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    return options


def which() -> Parser:
    options = Parser(add_help=False)
    options.add_argument("--alpha", type=widths, metavar="X[,X]", help="width; default: 1.0")
    options.add_argument("--resolution", type=counts, metavar="N[,N]", help="default: 224")
    options.add_argument("--batch", type=count, metavar="N", help="default: 1")
    options.add_argument("--classes", type=count, metavar="N", help="default: 1001")
    options.add_argument(
        "--variant", choices=("tf", "torch"), help="padding and epsilon; default: tf"
    )
    options.add_argument("--dtype", choices=("float32", "float16"), help="default: float32")
    return options


def built() -> Parser:
    options = Parser(add_help=False)
    options.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS_HELP)
    options.add_argument("--lib", type=Path, metavar="FILE.so", help="default: built from the log")
    return options


def harvested() -> Parser:
    options = Parser(add_help=False)
    options.add_argument("--target", choices=("cuda",), default="cuda")
    options.add_argument("--device", metavar="NAME", help="a known GPU; default: this machine's")
    options.add_argument(
        "--budget", type=duration, default=1200.0, metavar="TIME", help="for tuning; default: 20m"
    )
    options.add_argument(
        "--limit", type=duration, metavar="TIME", help="start nothing new after; run again to go on"
    )
    options.add_argument(
        "--only", type=names, default=(), metavar="A,B", help="networks, such as batch1-float16"
    )
    add_kernels(options)
    options.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    options.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    return options


def add_kernels(options: Parser) -> None:
    options.add_argument(
        "--kernel",
        action="extend",
        type=kernels,
        default=[],
        metavar="A,B",
        help="trials of these kernels alone; repeatable",
    )


def output() -> Parser:
    options = Parser(add_help=False)
    options.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return options


def count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no count; expected a whole number from 1 up")
    return int(text)


def port(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,4}", text) or int(text) >= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; expected one from 1 to 65535")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers in a text such as 224 or 128,160, each once, ascending."""
    return tuple(sorted({count(number) for number in text.split(",")}))


def widths(text: str) -> tuple[float, ...]:
    """Numbers in a text such as 1.0 or 0.25,0.5."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no width; expected a number such as 0.5, or several with commas"
        ) from None


def rate(text: str) -> float:
    """Bytes a second in a text such as 100, which counts GB/s."""
    match = re.fullmatch(r"\d+(?:\.\d+)?", text)
    if match is None or float(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; expected GB/s, e.g. 100 or 460.8")
    return float(text) * 1e9


def duration(text: str) -> float:
    """Seconds in a text such as 90s, 5m or 1.5h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; expected e.g. 90s, 5m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def share(text: str) -> float:
    """A part of one in a text such as 10% or 2.5%."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; expected e.g. 10% or 2.5%")
    return float(match[1]) / 100


def endpoint(text: str) -> Endpoint:
    try:
        return Endpoint.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def kernels(text: str) -> tuple[str, ...]:
    if not (found := names(text)):
        raise argparse.ArgumentTypeError(
            f"{text!r} names no kernel; expected some, such as te.conv"
        )
    return found


def names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
