"""What `bench` compares: the network that a library computes, on the images that it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets import machines
from tune import cli, pipeline
from tune.errors import UsageError
from tune.mobilenet import MobileNet
from tune.peers import Job, as_input
from tune.pipeline import Site, comparing

HOST = machines("x86").host()
MODEL = MobileNet(alpha=0.25, resolution=32, batch=2, classes=5, variant="torch")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It takes bytes."""
    path = tmp_path_factory.mktemp("library") / "net.so"
    log = pipeline.Log(path=path.with_name("none.jsonl"))
    options: dict[str, Any] = {"threads": 1, "weights": None, "seed": 0, "input_dtype": "uint8"}
    pipeline.build(MODEL, HOST, log, output=path, **options)
    return path


@pytest.mark.slow
def test_a_library_of_any_network_that_takes_bytes_is_compared(
    library: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stored = tmp_path / "result.json"
    words = ["bench", "--lib", str(library), "--threads", "1", "--peers", "torch-eager"]
    words += ["--rounds", "1", "--alpha", "0.25", "--json", str(stored)]
    assert cli.main(words) == 0, capsys.readouterr().err
    result = json.loads(stored.read_text())
    assert result["workload"] == MODEL.title
    assert {row["name"] for row in result["rows"]} == {"septune", "torch-eager"}
    assert result["threads"] == 1


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("--alpha 0.5", "alpha 0.25; expected 0.5, as --alpha says; leave --alpha out"),
        ("--resolution 224", "resolution 32; expected 224, as --resolution says; "),
        ("--classes 1001", "classes 5; expected 1001, as --classes says; "),
        ("--variant tf", "variant torch; expected tf, as --variant says; "),
        ("--dtype float16", "dtype float32; expected float16, as --dtype says; "),
        ("--batch 1", "batch 2; expected 1, as --batch says; "),
    ],
)
def test_a_library_of_another_network_is_refused(
    said: str, told: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "--lib", str(library), *said.split()]) == 2
    assert f"{library} computes a network of {told}" in capsys.readouterr().err


def test_the_network_of_a_library_is_that_of_its_manifest(library: Path, tmp_path: Path) -> None:
    assert pipeline.network_in(library, {}) == MODEL
    assert pipeline.network_in(library, {"alpha": (0.25,), "batch": (2,)}) == MODEL
    manifest = json.loads(library.with_suffix(".json").read_text())
    for model in (None, {}, {"alpha": 0.25, "depth": 3}, {"alpha": -1}):
        copy = tmp_path / "copy.so"
        copy.touch()
        copy.with_suffix(".json").write_text(json.dumps(manifest | {"model": model}))
        if model == {}:
            assert pipeline.network_in(copy, {}) == MobileNet()
            continue
        with pytest.raises(UsageError, match=r"copy\.so names no network that is known"):
            pipeline.network_in(copy, {})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_are_bytes_for_whoever_takes_them(dtype: str) -> None:
    model = MobileNet(resolution=64, dtype=dtype)
    x = Job.at_random(model, {}, threads=1, seed=3).x
    assert x.dtype == np.float32
    assert (x == x.astype(dtype)).all()
    photos = as_input(x, "uint8")
    assert photos.dtype == np.uint8
    assert len(np.unique(photos)) == 256
    again = (photos.astype(np.float32) / np.float32(127.5) - 1).astype(dtype)
    assert (again == as_input(x, dtype)).all()


def test_a_library_that_takes_bytes_is_not_counted(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "_counted", lambda *_: pytest.fail("it is counted"))
    a76 = machines("arm64").DEVICES["cortex-a76"]
    with pytest.raises(UsageError, match=r"takes bytes, .* that takes float32; .*--input uint8"):
        compared(a76, library)


@pytest.mark.parametrize("place", ["here", "emulated"])
def test_peers_peak_and_library_are_of_the_same_threads(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the site, and one where instructions are counted."""
    built: list[int] = []

    def build(*_: Any, threads: int, **__: Any) -> None:
        built.append(threads)
        raise UsageError("enough")

    monkeypatch.setattr(comparing, "build", build)
    target = HOST if place == "here" else machines("arm64").DEVICES["cortex-a76"]
    with pytest.raises(UsageError, match="enough"):
        compared(target, None, threads=3)
    assert built == [3 if place == "here" else 1]


def compared(target: Any, library: Path | None, threads: int = 1) -> dict[str, Any]:
    return pipeline.bench(
        MODEL,
        target,
        pipeline.Log(path=Path("none.jsonl")),
        site=Site(threads=threads),
        weights=None,
        seed=0,
        library=library,
        peers=["septune"],
        rounds=1,
        progress=lambda _: None,
    )
