"""The Python application, in an environment that holds nothing but what it says it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tune import pipeline
from tune.pins import PINS

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "examples" / "python"
PHOTOS = ROOT / "examples" / "photos"
# Of these, the modules that they bring; what they need themselves is among them.
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "ml_dtypes", "numpy", "pillow", "typing_extensions")
ABSENT = ("torch", "triton", "xgboost", "psutil", "safetensors", "cloudpickle", "tornado")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with `PACKAGES`, TVM without its compiler."""
    folder = tmp_path_factory.mktemp("environment") / "app"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in PACKAGES:
        installed = distribution(package)
        for part in {file.parts[0] for file in installed.files or () if ".." not in file.parts}:
            source = Path(str(installed.locate_file(part)))
            if part != "tvm" and source.exists():
                (site / part).symlink_to(source)
    tvm = Path(find_spec("tvm").origin).parent  # type: ignore[union-attr, arg-type]
    (site / "tvm" / "lib").mkdir(parents=True)
    for source in tvm.iterdir():
        if source.name != "lib":
            (site / "tvm" / source.name).symlink_to(source)
    runtime = tvm / "lib" / "libtvm_runtime.so"
    (site / "tvm" / "lib" / runtime.name).symlink_to(runtime)
    (site / "septune.pth").write_text(f"{ROOT}\n")
    return folder / "bin" / "python"


def run(python: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, *words], capture_output=True, text=True, env=kept)


def test_the_environment_lacks_what_it_should(python: Path) -> None:
    code = f"from importlib.util import find_spec\nprint([n for n in {ABSENT} if find_spec(n)])"
    assert run(python, "-c", code).stdout == "[]\n"


@pytest.mark.slow
def test_application_answers_as_the_command_does(python: Path, mobilenet: Path) -> None:
    photos = [PHOTOS / "coffee.png", PHOTOS / "chelsea.png"]
    done = run(python, PYTHON / "classify.py", mobilenet, "--json", "--repeat", "2", *photos)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    for photo, expected in pipeline.classify(mobilenet, photos, threads=1):
        guesses = report["photos"][str(photo)]
        assert [label for _, label in guesses] == [label for _, label in expected]
        np.testing.assert_allclose([p for p, _ in guesses], [p for p, _ in expected], rtol=1e-6)
    assert report["photos"][str(photos[0])][0][1] == "espresso"
    assert 0 < report["p20_s"] <= report["median_s"] <= report["p80_s"] <= report["p99_s"]

    done = run(python, PYTHON / "classify.py", mobilenet, photos[0])
    assert done.stdout.splitlines()[1] == "   0.991  espresso"
    assert re.match(r"50 inferences, batch 1: median [\d.]+ ms", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_networks_at_once(python: Path, mobilenet: Path) -> None:
    words = [PYTHON / "classify.py", mobilenet, "--repeat", "2", "--workers", "2"]
    done = run(python, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"2 networks at once: [\d.]+ images/s$", done.stdout.splitlines()[-1])
    report = json.loads(run(python, *words, "--json", PHOTOS / "coffee.png").stdout)
    assert (report["workers"], report["images_per_s"] > 0) == (2, True)
    assert report["photos"][str(PHOTOS / "coffee.png")][0][1] == "espresso"


@pytest.mark.slow
def test_errors_are_one_line(python: Path, mobilenet: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.so"
    copy.write_bytes(mobilenet.read_bytes()[:-1])
    copy.with_suffix(".json").write_text(mobilenet.with_suffix(".json").read_text())
    for words, status, told in (
        ([copy], 2, f"{copy} is not the library that its manifest describes; "),
        ([tmp_path / "none.so"], 2, f"no library at {tmp_path / 'none.so'}; "),
        ([mobilenet, "--workers", "0"], 2, "workers are 0; expected a number from 1 up; "),
        ([mobilenet, tmp_path / "none.png"], 2, f"no photo at {tmp_path / 'none.png'}; "),
    ):
        done = run(python, PYTHON / "classify.py", *words)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith(f"classify: {told}")
        assert done.stderr.count("\n") == 1


def test_the_readme_names_the_pinned_versions() -> None:
    text = (PYTHON / "README.md").read_text()
    for package, version in PINS.items():
        assert f"{package}=={version}" in text
