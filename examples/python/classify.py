"""What is on photos, and how long a network takes to tell.

python classify.py MODEL.so [--threads N] [--workers N] [--repeat N] [--json] [PHOTO...]

--workers lets so many networks compute at once, by default on a thread each: more images a second
than one network on all cores, each of them later.

Needs septune's own modules, apache-tvm, NumPy and, to read photos, Pillow: neither a compiler nor
PyTorch. See README.md for how to install no more than that.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tune import images, runtime
from tune.errors import SeptuneError, UsageError

WARMUP = 5  # calls that fill caches, before those that count


def main() -> int:
    parser = argparse.ArgumentParser(description="Name what is on photos, and measure.")
    parser.add_argument("library", type=Path, metavar="MODEL.so")
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as built, or 1 a worker")
    parser.add_argument("--workers", type=int, metavar="N", help="networks that compute at once")
    parser.add_argument("--repeat", type=int, default=50, metavar="N", help="default: 50")
    parser.add_argument("--json", action="store_true", help="print one object instead of lines")
    options = parser.parse_intermixed_args()
    try:
        if options.workers is not None and options.workers < 1:
            raise UsageError(f"workers are {options.workers}; expected a number from 1 up; pass 2")
        threads = options.threads or (None if options.workers is None else 1)
        report = classify(options.library, options.photos, threads, options.repeat, options.workers)
    except SeptuneError as error:
        print(f"classify: {error}", file=sys.stderr)
        return error.exit_status
    if options.json:
        print(json.dumps(report))
        return 0
    for photo, guesses in report["photos"].items():
        print(photo)
        for probability, label in guesses:
            print(f"  {probability:6.3f}  {label}")
    ms = {name: report[f"{name}_s"] * 1e3 for name in ("median", "p20", "p80", "p99")}
    print(
        f"{options.repeat} inferences, batch {report['batch']}: median {ms['median']:.3f} ms, "
        f"p20 {ms['p20']:.3f}, p80 {ms['p80']:.3f}, p99 {ms['p99']:.3f}"
    )
    if options.workers is not None:
        print(f"{options.workers} networks at once: {report['images_per_s']:.1f} images/s")
    return 0


def classify(
    library: Path, photos: list[Path], threads: int | None, repeat: int, workers: int | None = None
) -> dict:
    """The five likeliest classes of each photo, the time of an inference of a whole batch, and how
    many images a second so many workers get through.
    """
    network = runtime.load(library, threads)
    batch, size, _, _ = network.input_shape
    report: dict = {"batch": batch, "photos": {}}
    x = np.zeros((1, size, size, 3), network.dtype)
    for photo in photos:
        x = images.read(photo, size, network.dtype)
        report["photos"][str(photo)] = likeliest(network.many(x)[0])

    bound = network.bind(np.repeat(x, batch, axis=0))  # in TVM's memory, as a camera's could be
    times = []
    for _ in range(WARMUP + repeat):
        start = time.perf_counter()
        network.run(bound).numpy()
        times.append(time.perf_counter() - start)
    shares = {"p20": 20, "median": 50, "p80": 80, "p99": 99}
    for name, share in shares.items():
        report[f"{name}_s"] = float(np.percentile(times[WARMUP:], share))
    if workers is not None:
        report |= {"workers": workers, "images_per_s": at_once(network, bound, workers, repeat)}
    return report


def at_once(network: runtime.Network, images: Any, workers: int, repeat: int) -> float:
    """Images a second of so many networks, each in a thread of Python's, `repeat` batches each."""
    ready = threading.Barrier(workers)

    def work(one: runtime.Network) -> tuple[float, float]:
        for _ in range(WARMUP):
            one.run(images).numpy()
        ready.wait()
        start = time.perf_counter()
        for _ in range(repeat):
            one.run(images).numpy()
        return start, time.perf_counter()

    with ThreadPoolExecutor(workers) as pool:
        spans = list(pool.map(work, [network.clone() for _ in range(workers)]))
    starts, ends = zip(*spans, strict=True)
    return workers * repeat * network.input_shape[0] / (max(ends) - min(starts))


def likeliest(logits: np.ndarray, count: int = 5) -> list[tuple[float, str]]:
    """(probability, label) of the first classes."""
    odds = np.exp(logits.astype(np.float64) - logits.max())
    odds /= odds.sum()
    labels = images.labels()
    if len(labels) != len(odds):
        labels = tuple(f"class {number}" for number in range(len(odds)))
    return [(float(odds[place]), labels[place]) for place in np.argsort(-odds)[:count]]


if __name__ == "__main__":
    sys.exit(main())
