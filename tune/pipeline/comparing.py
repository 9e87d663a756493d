"""The artifact against its peers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from targets.target import Target
from tune.bench import Rounds, compare
from tune.errors import UsageError
from tune.mobilenet import MobileNet
from tune.peers import PEERS
from tune.pins import check_pins
from tune.pipeline.building import build, weights_of
from tune.pipeline.records import Log
from tune.runners.local import LocalRunner


def bench(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    threads: int,
    weights: Path | None,
    seed: int,
    library: Path | None,
    peers: Sequence[str] | None,
    rounds: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Our library, built from the log when none is given, against peers: the comparison as data."""
    check_pins()
    for name in peers or ():
        if name not in PEERS:
            raise UsageError(
                f"peer {name!r} is not known; expected some of {', '.join(PEERS)}; "
                f"leave --peers out for all that are installed"
            )
    contenders = {name: PEERS[name] for name in peers or PEERS}
    with tempfile.TemporaryDirectory(prefix="septune-") as folder:
        if library is None:
            progress("building our library from the log")
            library = Path(folder) / "bench.so"
            arguments = {"threads": threads, "weights": weights, "seed": seed, "output": library}
            build(model, target, log, **arguments)  # type: ignore[arg-type]
        progress("measuring the multiply-add peak")
        with LocalRunner(target, threads, builders=1) as runner:
            peak_flops = runner.peak_flops()
        comparison = compare(
            model,
            weights_of(model, weights, seed),
            library,
            threads=threads,
            peak_flops=peak_flops,
            device=target.device,
            rounds=Rounds(count=rounds),
            peers=contenders,
            progress=progress,
        )
    return asdict(comparison)
