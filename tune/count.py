"""Executed instructions of one inference: our library and its peers, on an emulated aarch64 core.

Same network, same weights, same input, one thread. Ours is called from C, as a device
calls it; a peer through its aarch64 wheel's Python, whose own instructions count as well (some
thousand an inference). Outputs are compared before anything counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernels.workload import ITEM_BYTES
from tune.emulator.cache import cache, once
from tune.emulator.guest import Guest, unpack_wheels
from tune.emulator.instrument import GuestFailed, GuestTimeout, Instrument, between_marks
from tune.errors import GateError, SetupError
from tune.mobilenet import MobileNet
from tune.peers import OURS, PEERS, Absent, Array, Job
from tune.peers.judge import difference, expected_logits
from tune.peers.process import ROOT, PeerFailed, Process

if TYPE_CHECKING:
    from tune.weights import Weights

VECTOR_BYTES = 16
CALLS = 3
TIMEOUT_S = 600.0

# Peer -> what it needs beside the board's own packages. PyTorch 2.10 is the last whose aarch64
# wheel asks for no CUDA.
WHEELS = {
    "torch-eager": (
        "torch==2.10.0",
        "filelock",
        "fsspec",
        "jinja2",
        "markupsafe",
        "mpmath",
        "networkx",
        "sympy",
    ),
    "onnxruntime": ("onnx>=1.23,<2", "onnxruntime==1.32.*", "flatbuffers", "packaging", "protobuf"),
    "litert": ("ai-edge-litert==2.3.0", "flatbuffers"),
    "ncnn": ("ncnn==1.0.20261020",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender's result."""

    name: str
    version: str
    instructions: int
    max_abs_diff: float  # of its logits from the reference's
    ratio_to_ours: float  # of instructions; above 1 is more than ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Who executes how much, from the least; `asdict` of it is stored.

    floor  instructions when each does a multiply-add in every lane
    """

    floor: int
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...]


def count(
    model: MobileNet,
    weights: Weights,
    library: Path,
    instrument: Instrument,
    *,
    peers: Sequence[str] = tuple(WHEELS),
    wheels: Mapping[str, Sequence[str]] = WHEELS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Our `library`, always, and `peers` on one random batch of images.

    wheels    by peer, what is unpacked for it
    progress  is told, in a line, what happens

    A peer that cannot be had, fails, hangs or computes something else is absent, with the reason.
    GateError when that is our library; SetupError when the reference fails.
    """
    job = Job.at_random(model, weights, threads=1, seed=seed)
    expected = expected_logits(job, TIMEOUT_S)
    progress(f"counting {OURS}")
    ours, off = _ours(library, job, expected, instrument)
    rows = [_row(OURS, "", ours, off, ours)]
    absent = []
    for name in peers:
        if model.dtype not in PEERS[name].dtypes:
            absent.append(Absent(name=name, reason=f"not set up to compute in {model.dtype}"))
            continue
        progress(f"counting {name}")
        try:
            version, instructions, off = _peer(
                name, job, expected, instrument, wheels.get(name, ())
            )
        except (PeerFailed, SetupError) as failure:
            absent.append(Absent(name=name, reason=str(failure)))
        else:
            rows.append(_row(name, version, instructions, off, ours))
    return Tally(
        floor=model.macs * ITEM_BYTES[model.dtype] // VECTOR_BYTES,
        rows=tuple(sorted(rows, key=lambda row: row.instructions)),
        absent=tuple(absent),
    )


def _ours(library: Path, job: Job, expected: Array, instrument: Instrument) -> tuple[int, float]:
    """Instructions and distance from the expected logits. GateError when there are none."""
    try:
        image = job.x.astype(job.model.dtype)
        counted = instrument.network(library, image, timeout_s=TIMEOUT_S)
        logits = counted.y.reshape(expected.shape).astype(np.float32)
        return counted.instructions, difference(job, logits, expected)
    except (GuestFailed, GuestTimeout, PeerFailed) as failure:
        raise GateError(
            f"{library} has no result: {failure}; expected right logits from an aarch64 library; "
            f"build it again from the same weights"
        ) from None


def _peer(
    name: str, job: Job, expected: Array, instrument: Instrument, wheels: Sequence[str]
) -> tuple[str, int, float]:
    """Version, instructions and distance from the expected logits. PeerFailed, SetupError."""
    site = _site(name, instrument.guest, wheels)
    out = site / "marks"
    python = instrument.guest.python(path=(ROOT, site), plugin=instrument.plugin(out))
    with Process(threads=1, python=python) as process:
        version, y = process.ask("prepare", PEERS[name], job, timeout_s=TIMEOUT_S)
        off = difference(job, y, expected)
        process.ask("mark", CALLS, timeout_s=TIMEOUT_S)
    return version, min(between_marks(out)), off


def _site(name: str, guest: Guest, wheels: Sequence[str]) -> Path:
    """Where the peer's packages are unpacked."""

    def make(folder: Path) -> None:
        unpack_wheels(wheels, guest.root, folder, folder / "wheels")

    return once(cache() / "peers" / name, json.dumps(wheels), make)


def _row(name: str, version: str, instructions: int, off: float, ours: int) -> Row:
    return Row(
        name=name,
        version=version,
        instructions=instructions,
        max_abs_diff=off,
        ratio_to_ours=instructions / ours,
    )
