"""What options stand for: a machine, a place, a network, a file to write."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tune.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from targets.target import Target
    from tune.mobilenet import MobileNet
    from tune.pipeline import Log, Site
    from tune.runners.session import Facts

FIELDS = ("alpha", "resolution", "batch", "classes", "variant", "dtype", "body")  # of a network


class Place(NamedTuple):
    """A machine, the log of what is known of it, and where its code is measured."""

    target: Target
    log: Log
    site: Site


def place_of(options: argparse.Namespace, *, measures: bool = False) -> Place:
    """What is asked for; its site's threads are those of all that the command does.

    measures  whether something is measured there
    """
    from tune import pipeline

    estimator = getattr(options, "estimator", None)
    pipeline.check_estimator(estimator, options.target)
    facts = None
    if options.rpc is not None and None in (options.device, options.threads):
        from tune.runners.rpc import facts_at

        facts = facts_at(options.target, options.rpc, key=options.rpc_key)
    target = target_of(options, facts)
    log = pipeline.Log.at(options.log, target)
    threads = pipeline.threads_of(
        target,
        log,
        asked=options.threads,
        board=None if facts is None else facts.cores,
        estimator=estimator,
        measures=measures,
    )
    site = pipeline.Site(
        endpoint=options.rpc,
        key=options.rpc_key,
        estimator=estimator,
        threads=threads,
        notice=lambda line: print(f"septune: {line}", file=sys.stderr),
    )
    return Place(target=target, log=log, site=site)


def target_of(options: argparse.Namespace, facts: Facts | None = None) -> Target:
    """The machine asked for: a known device by name, else the board's own, else this one.

    facts  what the board says of itself
    """
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
    elif facts is not None:
        from tune.runners.rpc import device_of

        device = device_of(options.target, options.rpc, facts)
    else:
        device = kind.host()
    return device


def model_of(options: argparse.Namespace) -> MobileNet:
    """The network asked for. UsageError when there are several."""
    models = models_of(options)
    if len(models) > 1:
        raise UsageError(
            f"--alpha and --resolution ask for {len(models)} networks; expected one width and one "
            f"resolution; only run and bench take several"
        )
    return models[0]


def models_of(options: argparse.Namespace) -> list[MobileNet]:
    """Every width at every resolution, the largest first."""
    from tune.mobilenet import MobileNet

    said = network_of(options)
    models = [
        MobileNet(**dict(zip(said, values, strict=True))) for values in product(*said.values())
    ]
    return sorted(dict.fromkeys(models), key=lambda model: -model.macs)


def network_of(options: argparse.Namespace) -> dict[str, tuple[Any, ...]]:
    """Fields of the network that options name, with their values; all others are defaults."""
    said = {name: getattr(options, name, None) for name in FIELDS}
    return {
        name: value if isinstance(value, tuple) else (value,)
        for name, value in said.items()
        if value is not None
    }


def check_json(options: argparse.Namespace) -> None:
    """UsageError when --json would replace a file that the command reads, or writes otherwise."""
    path = getattr(options, "json", None)
    if path is None:
        return
    files = [value for name, value in vars(options).items() if name != "json"]
    library = getattr(options, "lib", None)
    if library is not None:
        files.append(library.with_suffix(".json"))  # its manifest
    if path.resolve() in [file.resolve() for file in files if isinstance(file, Path)]:
        raise UsageError(
            f"--json {path} is a file that this command needs; expected one for its result alone; "
            f"choose another --json"
        )


def write_json(options: argparse.Namespace, value: Any) -> None:
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
