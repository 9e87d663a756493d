"""The artifact against its peers: by the clock here or on a board, by instructions without one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from targets import machines
from targets.target import Target
from tune.bench import Comparison, Rounds, Row, compare, percentiles
from tune.errors import GateError, UsageError
from tune.mobilenet import MobileNet
from tune.peers import GPU_PEERS, OURS, PEERS, Absent, Job, as_input
from tune.peers.judge import difference, expected_logits
from tune.peers.process import PeerFailed
from tune.pins import PINS, check_pins
from tune.pipeline.building import build, weights_of
from tune.pipeline.records import Log
from tune.pipeline.site import Site, runner_at
from tune.runtime import read_manifest
from tune.weights import Weights

SAMPLES = 30  # a round, on a board


def bench(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    site: Site,
    weights: Path | None,
    seed: int,
    library: Path | None,
    peers: Sequence[str] | None,
    rounds: int,
    deadline: float | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Our library, built from the log when none is given, against peers: the result as data.

    deadline, keep  as `bench.compare` has them, whose result `keep` is given as data

    A `bench.Comparison` where code for `target` runs, here or on a board; elsewhere, for arm64, a
    `count.Tally` of executed instructions.
    """
    check_pins()
    gpu = target.kind == "cuda"
    known = GPU_PEERS if gpu else PEERS
    for name in peers or ():
        if name not in known:
            raise UsageError(
                f"peer {name!r} is not known; expected some of {', '.join(known)}; "
                f"leave --peers out for all that are installed"
            )
    local = site.endpoint is None and machines(target.kind).can_run(target)
    counting = not local and site.endpoint is None and target.kind == "arm64"
    threads = 1 if counting else site.threads
    ours = weights_of(model, weights, seed)
    with tempfile.TemporaryDirectory(prefix="septune-") as folder:
        if library is None:
            progress("building our library from the log")
            library = Path(folder) / "bench.so"
            arguments = {"threads": threads, "weights": weights, "seed": seed, "output": library}
            build(model, target, log, **arguments)  # type: ignore[arg-type]
        takes = read_manifest(library)["input"]["dtype"]
        if counting:
            if takes == "uint8":
                raise UsageError(
                    f"{library} takes bytes, which the program that is counted does not send; "
                    f"expected a library that takes {model.dtype}; build it without --input uint8"
                )
            return _counted(model, target, ours, library, peers, seed, progress)
        if not local:
            samples = rounds * SAMPLES
            return _on_board(model, target, site, ours, library, takes, peers, samples, seed)
        progress("measuring the peak")
        with runner_at(site, target) as runner:
            peak_flops = runner.peak_flops(model.dtype)
        comparison = compare(
            model,
            ours,
            library,
            threads=threads,
            peak_flops=peak_flops,
            device=target.device,
            place="cuda" if gpu else "cpu",
            rounds=Rounds(count=rounds),
            peers={name: peer for name, peer in known.items() if name in (peers or known)},
            seed=seed,
            deadline=deadline,
            keep=lambda part: keep(asdict(part)),
            progress=progress,
        )
    return asdict(comparison)


def _counted(
    model: MobileNet,
    target: Target,
    weights: Weights,
    library: Path,
    peers: Sequence[str] | None,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Executed instructions of one inference on one emulated thread."""
    from tune.builder import linker
    from tune.count import WHEELS, count
    from tune.emulator.guest import guest
    from tune.emulator.instrument import instrument

    chosen = [name for name in peers or WHEELS if name != OURS]
    tally = count(
        model,
        weights,
        library,
        instrument(guest(progress), linker(target)),
        peers=chosen,
        seed=seed,
        progress=progress,
    )
    return {"workload": model.title, "device": target.device} | asdict(tally)


def _on_board(
    model: MobileNet,
    target: Target,
    site: Site,
    weights: Weights,
    library: Path,
    takes: str,
    peers: Sequence[str] | None,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Our library alone: what else a board has installed, its server cannot tell.

    takes  the dtype of its images
    GateError when its logits are wrong.
    """
    from tune.runners.rpc import RpcRunner

    job = Job.at_random(model, weights, threads=1, seed=seed)
    with runner_at(site, target) as runner:
        assert isinstance(runner, RpcRunner)
        peak_flops = runner.peak_flops(model.dtype)
        logits, seconds = runner.infer(library, as_input(job.x, takes), samples)
    p20_s, median_s, p80_s = percentiles(seconds)
    expected = expected_logits(job, Rounds().prepare_timeout_s)
    try:
        off = difference(job, logits.astype(np.float32), expected)
    except PeerFailed as failure:
        raise GateError(
            f"{OURS} has no result: {failure}; expected right logits from {library}; "
            f"build it again from the same weights"
        ) from None
    row = Row(
        name=OURS,
        version=f"tvm {PINS['apache-tvm']}",
        median_s=median_s,
        p20_s=p20_s,
        p80_s=p80_s,
        max_abs_diff=off,
        ratio_to_ours=1.0,
    )
    reason = "only our library can be sent to a board; run the peer's own benchmark on it"
    return asdict(
        Comparison(
            workload=model.title,
            threads=site.threads,
            peak_gflops=peak_flops / 1e9,
            floor_s=2 * model.macs / peak_flops,
            load_average=os.getloadavg()[0],
            device=target.device,
            rows=(row,),
            absent=tuple(Absent(name=name, reason=reason) for name in peers or () if name != OURS),
        )
    )
