"""How kernels follow on one another on a GPU: one network, launched in several ways, in turns.

    python examples/gpu/launching.py [--batch N] [--dtype float16] [--weights FILE] [--log PATH]

builds MobileNet-V1 from the log, once for each way, checks that all compute the same, and prints
what an inference takes from idle to idle, and one behind the other. Run it in the checkout, on the
machine with the GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import triton

from kernels.triton import aot, embed, tile
from kernels.triton.call import Call
from targets import machines
from targets.target import Target
from tune.mobilenet import MobileNet
from tune.runners.worker import elsewhere

WAYS = {
    "ahead": "as `build` has it",
    "held": "ahead, but the next one starts when this one's blocks have ended",
    "alone": "ahead, with an SM for each block where there are enough",
    "behind": "none ahead of the end of the one before",
}
TIMEOUT_S = 300.0
ROUNDS = 30
WARMUP, CALLS = 3, 5  # of a round, from idle to idle
QUEUED = 20  # of a round, one behind the other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--weights", type=Path, help="checkpoint; default: ImageNet")
    parser.add_argument("--log", type=Path, help="default: logs/cuda/DEVICE.jsonl")
    options = parser.parse_args()
    try:
        target: Target = machines("cuda").host()
    except ValueError as error:
        sys.exit(f"launching.py: {error}")
    model = MobileNet(batch=options.batch, dtype=options.dtype)
    with tempfile.TemporaryDirectory(prefix="septune-") as folder:
        libraries = {way: Path(folder) / f"{way}.so" for way in WAYS}

        def build(way: str) -> Any:
            arguments = (way, model, target, options.log, options.weights, libraries[way])
            return elsewhere(built, *arguments, timeout_s=TIMEOUT_S)

        with ThreadPoolExecutor(len(WAYS)) as pool:
            layers = list(pool.map(build, WAYS))
        assert all(other == layers[0] for other in layers), "not the same kernels"
        found = elsewhere(timed, list(libraries.values()), timeout_s=TIMEOUT_S)
    print(f"{model.title}, {target.device}, µs\n\nway      idle to idle  queued")
    for (way, what), (alone_s, queued_s) in zip(WAYS.items(), found, strict=True):
        print(f"{way:7}  {alone_s * 1e6:12.2f}  {queued_s * 1e6:6.2f}  {what}")


def built(
    way: str, model: MobileNet, target: Target, log: Path | None, weights: Path | None, output: Path
) -> Any:
    """The library, whose kernels this process launches in its own way; what its layers are."""
    from tune.pipeline import Log, build

    embed.compile_call = partial(launched, way)  # type: ignore[assignment]
    log_ = Log.at(log, target)
    facts = build(model, target, log_, threads=1, weights=weights, seed=0, output=output)
    return facts["layers"]


def launched(way: str, call: Call, target: Target) -> tuple[aot.Binary, ...]:
    """The launches of a call as `aot` compiles them, but for how they follow one another."""
    if way == "held":  # not before: kernels that are made of something else have no records
        tile.gdc_launch_dependents = nothing
    binaries = aot.compile_call(call, target)
    if way == "behind":
        return tuple(replace(binary, dependent=False) for binary in binaries)
    if way == "alone":
        more_than_half = target.gpu.shared_per_sm_bytes // 2 + 1024
        return tuple(
            replace(binary, shared_bytes=max(binary.shared_bytes, more_than_half))
            if binary.programs <= target.gpu.sms
            else binary
            for binary in binaries
        )
    return binaries


@triton.jit  # type: ignore[untyped-decorator]
def nothing() -> None:
    pass


def timed(libraries: Sequence[Path]) -> list[tuple[float, float]]:
    """Medians in seconds, (from idle to idle, one behind the other), of each."""
    import torch

    from tune.runtime import load

    networks = [load(library) for library in libraries]
    images = np.random.default_rng(0).uniform(-1, 1, networks[0].input_shape)
    x = [network.bind(images.astype(network.dtype)) for network in networks]
    logits = [network(images.astype(network.dtype)) for network in networks]
    for other in logits[1:]:
        np.testing.assert_array_equal(other, logits[0])

    def seconds(number: int, calls: int) -> float:
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            networks[number].run(x[number])
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3 / calls

    alone: list[list[float]] = [[] for _ in networks]
    queued: list[list[float]] = [[] for _ in networks]
    for _ in range(ROUNDS):
        for number in range(len(networks)):
            alone[number] += [seconds(number, 1) for _ in range(WARMUP + CALLS)][WARMUP:]
            queued[number].append(seconds(number, QUEUED))
    return [(median(one), median(many)) for one, many in zip(alone, queued, strict=True)]


if __name__ == "__main__":
    main()
