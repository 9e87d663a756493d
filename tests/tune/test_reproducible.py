"""The same log and weights make the same library, to the byte, without measuring anything."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from targets import machines
from tune import cli, pipeline
from tune.mobilenet import MobileNet

ROOT = Path(__file__).parents[2]
# A build in a process in which nothing can be measured, and no connection made.
BUILD = """
import socket, sys

def refuse(*_, **__):
    raise SystemExit("it measures, or connects")

socket.socket.connect = refuse
from tune import cli
from tune.pipeline import tuning
from tune.runners import local, worker

for module, name in ((local, "LocalRunner"), (tuning, "runner_at"), (worker.Worker, "call")):
    setattr(module, name, refuse)
sys.exit(cli.main(sys.argv[1:]))
"""
# What may differ between machines and must not show: where files lie, hashes of words, the time.
SETTINGS = (
    {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LANG": "C"},
    {"PYTHONHASHSEED": "2", "TZ": "UTC", "TVM_NUM_THREADS": "1"},
)


def build(folder: Path, settings: dict[str, str], *words: str) -> tuple[str, str]:
    """Hashes of the library and the manifest that a process of its own builds in `folder`."""
    (folder / "scratch").mkdir(parents=True)
    library = folder / "net.so"
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "build", *words, "-o", str(library)],
        cwd=folder,
        env=os.environ | settings | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "scratch")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = (library, library.with_suffix(".json"))
    library_sha256, manifest = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return library_sha256, manifest


CASES = {
    "x86": ("--target", "x86", "--device", "znver4", "--threads", "2", "--require-tuned"),
    "arm64": (
        *("--target", "arm64", "--device", "cortex-a76", "--threads", "1"),
        *("--require-tuned", "--allow-estimates"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_committed_logs_build_the_same_library_anywhere(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    places = (tmp_path / "one", tmp_path / "another" / "place")
    built = [build(place, own, *words) for place, own in zip(places, SETTINGS, strict=True)]
    assert built[0] == built[1]
    assert str(tmp_path).encode() not in (places[0] / "net.so").read_bytes()
    for place in places:
        assert not list((place / "scratch").iterdir())


def test_the_best_of_a_log_builds_what_the_log_builds(tmp_path: Path) -> None:
    model, host = MobileNet(), machines("x86").DEVICES["znver4"]
    whole = pipeline.Log.at(None, host)
    few = tmp_path / "best.jsonl"
    pipeline.add(pipeline.best(whole.path), few)
    assert len(few.read_text().splitlines()) < len(whole.path.read_text().splitlines()) / 10
    plans = [
        pipeline.check(model, host, log, threads=threads)["layers"]
        for threads in (1, 2)
        for log in (whole, pipeline.Log(path=few))
    ]
    assert plans[0] == plans[1]
    assert plans[2] == plans[3]


def test_another_seed_another_library(tmp_path: Path) -> None:
    """So the comparison above can fail."""
    words = ["--alpha", "0.25", "--resolution", "32", "--classes", "5", "--threads", "1"]
    hashes = set()
    for seed in ("1", "2"):
        library = tmp_path / f"{seed}.so"
        log = str(tmp_path / "none")
        assert cli.main(["build", *words, "--seed", seed, "--log", log, "-o", str(library)]) == 0
        hashes.add(json.loads(library.with_suffix(".json").read_text())["library_sha256"])
    assert len(hashes) == 2
