"""The artifact: its answers are PyTorch's, and whatever is wrong with it or its input is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels import kernel, kernels_for
from kernels.tolerance import network_tolerance
from targets import machines
from tune import pipeline, weights
from tune.eager import from_weights
from tune.errors import SetupError, UsageError
from tune.mobilenet import MobileNet
from tune.pins import PINS
from tune.runtime import Network, load

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
X86 = machines("x86")
HOST = X86.host()
MODEL = MobileNet(alpha=0.25, resolution=32, classes=5)
PAIR = MobileNet(alpha=0.25, resolution=32, classes=5, batch=2, variant="torch")
SEED = 3


Built = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds a library of a model, once, with random weights and every layer at its default."""

    @cache
    def build(model: MobileNet, input_dtype: str | None = None) -> Path:
        folder = tmp_path_factory.mktemp("artifact")
        library, log = folder / "net.so", pipeline.Log(path=folder / "none.jsonl")
        given: dict[str, Any] = {"threads": 1, "weights": None, "seed": SEED, "output": library}
        pipeline.build(model, HOST, log, **given, input_dtype=input_dtype)
        return library

    return build


@pytest.fixture(scope="module")
def library(built: Built) -> Path:
    return built(MODEL)


@pytest.fixture(scope="module")
def network(library: Path) -> Network:
    return load(library)


@pytest.fixture(scope="module")
def pair(built: Built) -> Network:
    return load(built(PAIR))


def images(model: MobileNet, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(-1, 1, model.input_shape)
    return values.astype(np.float32)


def in_torch(model: MobileNet, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        eager = from_weights(weights.random(model, SEED), model)
        return eager(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()


def assert_close(model: MobileNet, y: np.ndarray, expected: np.ndarray) -> None:
    terms = [layer.workload.terms for layer in model.layers]
    allowed = network_tolerance(model.dtype, terms, scale=float(np.max(np.abs(expected))))
    np.testing.assert_allclose(y, expected, rtol=0, atol=allowed)


def test_logits_are_those_of_eager(network: Network) -> None:
    for seed in range(3):
        x = images(MODEL, seed)
        y = network(x)
        assert (y.shape, y.dtype) == ((1, 5), np.float32)
        assert_close(MODEL, y, in_torch(MODEL, x))


def test_every_image_of_a_batch_has_its_logits(pair: Network) -> None:
    x = images(PAIR)
    assert pair.input_shape == (2, 32, 32, 3)
    assert_close(PAIR, pair(x), in_torch(PAIR, x))
    np.testing.assert_array_equal(pair(x[::-1]), pair(x)[::-1])


def test_torch_tensor_is_read_in_place(network: Network) -> None:
    x = torch.from_numpy(images(MODEL)).clone()
    bound = network.bind(x)
    assert torch.from_dlpack(bound).data_ptr() == x.data_ptr()
    before = network.run(bound).numpy()
    np.testing.assert_array_equal(before, network(x.numpy()))
    x *= 0.5
    np.testing.assert_array_equal(network.run(bound).numpy(), network(x.numpy()))
    assert np.abs(network.run(bound).numpy() - before).max() > 0


def at_offset(x: np.ndarray, values: int) -> np.ndarray:
    """`x` at an address that is so many values behind one of 64 bytes."""
    memory = np.empty(x.size + 64, np.float32)
    start = -(memory.ctypes.data // 4) % 16 + values
    memory[start : start + x.size] = x.ravel()
    return memory[start : start + x.size].reshape(x.shape)


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


AS_IT_COMES: dict[str, Callable[[np.ndarray], Any]] = {
    "aligned": lambda x: at_offset(x, 0),
    "at any address": lambda x: at_offset(x, 1),
    "read-only": read_only,
    "columns first": np.asfortranarray,
    "every other value": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "torch": torch.from_numpy,
    "torch, channels first in memory": lambda x: (
        torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    ),
    "torch, at any address": lambda x: torch.from_numpy(at_offset(x, 1)),
}


@pytest.mark.parametrize("given", AS_IT_COMES.values(), ids=AS_IT_COMES)
def test_memory_may_be_laid_out_as_it_comes(
    network: Network, given: Callable[[np.ndarray], Any]
) -> None:
    x = images(MODEL)
    np.testing.assert_array_equal(network(given(x)), network(x))


@pytest.mark.parametrize(
    ("x", "was"),
    [
        (np.zeros((1, 3, 32, 32), np.float32), "float32 (1, 3, 32, 32)"),
        (np.zeros((32, 32, 3), np.float32), "float32 (32, 32, 3)"),
        (np.zeros((2, 32, 32, 3), np.float32), "float32 (2, 32, 32, 3)"),
        (np.zeros((1, 32, 32, 3)), "float64 (1, 32, 32, 3)"),
        (np.zeros((1, 32, 32, 3), np.uint8), "uint8 (1, 32, 32, 3)"),
        (torch.zeros(1, 32, 32, 3, dtype=torch.float16), "float16 (1, 32, 32, 3)"),
        (torch.zeros(1, 224, 224, 3), "float32 (1, 224, 224, 3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_images_are_refused(network: Network, x: Any, was: str) -> None:
    with pytest.raises(UsageError) as error:
        network(x)
    assert str(error.value) == (
        f"images are {was}; expected float32 (1, 32, 32, 3), NHWC; "
        f"convert them, or build for another --batch, --resolution, --dtype or --input"
    )


@pytest.mark.parametrize("model", [MODEL, PAIR], ids=["one", "two"])
def test_bytes_give_the_logits_of_their_values(model: MobileNet, built: Built) -> None:
    """To the last bit: the graph's first step computes what a caller would."""
    pixels = np.random.default_rng(0).integers(0, 256, model.input_shape, np.uint8)
    values = pixels.astype(np.float32) / np.float32(127.5) - 1
    bytes_in = load(built(model, "uint8"))
    assert bytes_in.dtype == "uint8"
    assert bytes_in.manifest["input"]["range"] == "RGB, 0 to 255"
    expected = load(built(model))(values)
    np.testing.assert_array_equal(bytes_in(pixels), expected)
    np.testing.assert_array_equal(bytes_in(torch.from_numpy(pixels)), expected)
    with pytest.raises(UsageError, match="images are float32"):
        bytes_in(values)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_number_of_images(pair: Network, count: int) -> None:
    x = np.random.default_rng(count).uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32)
    y = pair.many(x)
    assert (y.shape, y.dtype) == ((count, 5), np.float32)
    for one, logits in zip(x, y, strict=True):
        np.testing.assert_array_equal(pair(np.stack([one, one]))[0], logits)
    with pytest.raises(UsageError, match=r"images are float32 \(2, 32, 32, 1\)"):
        pair.many(np.zeros((3, 32, 32, 1), np.float32))


class Elsewhere:
    """A tensor in the memory of a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1


def test_images_of_another_device_are_refused(network: Network) -> None:
    with pytest.raises(UsageError) as error:
        network(Elsewhere())
    assert str(error.value) == (
        "images lie on device 2:1, as DLPack counts; expected the memory of this CPU; copy them "
        "there, in PyTorch with images.cpu()"
    )


@pytest.mark.parametrize("images", [None, [[0.0]], "photo.png"], ids=str)
def test_what_is_no_tensor_is_refused(network: Network, images: Any) -> None:
    with pytest.raises(UsageError) as error:
        network(images)
    assert str(error.value) == (
        f"images are of type {type(images).__name__}; expected a NumPy array or another tensor "
        f"that speaks DLPack; convert them with numpy.asarray"
    )


def test_cores_stay_free_unless_all_are_used(library: Path) -> None:
    """A process that is bound to the first core would meet all others of its kind there."""
    code = (
        "import os, sys\n"
        "from tune.runtime import load\n"
        "import numpy\n"
        "before = os.sched_getaffinity(0)\n"
        "network = load(sys.argv[1], threads=1)\n"
        "network(numpy.zeros(network.input_shape, 'float32'))\n"
        "print(os.sched_getaffinity(0) == before, len(before))\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TVM_")}
    for setting, alone in ({}, True), ({"TVM_BIND_THREADS": "1"}, False):
        process = subprocess.run(
            [sys.executable, "-c", code, str(library)],
            cwd=ROOT,
            env=kept | setting,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        free, cores = process.stdout.split()
        assert free == str(alone) or cores == "1"


def test_clones_compute_side_by_side_each_its_own_images(network: Network) -> None:
    inputs = [images(MODEL, seed) for seed in range(4)]
    alone = [network(x) for x in inputs]
    assert not np.array_equal(alone[0], alone[1])
    ready = threading.Barrier(len(inputs))

    def work(one: Network, x: np.ndarray) -> list[np.ndarray]:
        ready.wait(60)
        return [one(x) for _ in range(50)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        clones = [network.clone() for _ in inputs]
        for logits, expected in zip(pool.map(work, clones, inputs), alone, strict=True):
            assert all(np.array_equal(one, expected) for one in logits)


def test_a_clone_outlives_the_network(library: Path) -> None:
    x = images(MODEL)
    first = load(library)
    expected, clone = first(x), first.clone()
    del first
    np.testing.assert_array_equal(clone(x), expected)


def test_a_call_lets_other_threads_of_python_run(network: Network) -> None:
    """None gets its turn by time here: only because this one lets go of the interpreter."""
    go, ran = threading.Event(), []

    def other() -> None:
        go.wait()
        ran.append(True)

    x = network.bind(images(MODEL))
    waited = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    thread.start()
    sys.setswitchinterval(1000)
    try:
        go.set()
        before = bool(ran)
        for _ in range(2000):
            network.run(x)
            if ran:
                break
        after = bool(ran)
    finally:
        sys.setswitchinterval(waited)
        thread.join()
    assert (before, after) == (False, True)


def test_manifest_says_what_the_library_is(library: Path) -> None:
    manifest = json.loads(library.with_suffix(".json").read_text())
    layers = manifest.pop("layers")
    values = sum(prod(shape) for layer in MODEL.layers for shape in layer.workload.weight_shapes)
    assert 4 * values <= manifest.pop("weights_bytes") < 4 * values * 1.1
    assert len(manifest.pop("library_sha256")) == len(manifest.pop("weights_sha256")) == 64
    assert manifest == {
        "format": 1,
        "model": {
            "alpha": 0.25,
            "resolution": 32,
            "batch": 1,
            "classes": 5,
            "variant": "tf",
            "dtype": "float32",
            "body": "separable",
        },
        "input": {
            "name": "image",
            "shape": [1, 32, 32, 3],
            "dtype": "float32",
            "layout": "NHWC",
            "range": "RGB, value / 127.5 - 1",
        },
        "output": {"name": "logits", "shape": [1, 5], "dtype": "float32"},
        "target": {
            "kind": "x86",
            "device": HOST.device,
            "mcpu": HOST.mcpu,
            "features": sorted(HOST.features - {"GenuineIntel", "AuthenticAMD"}),
        },
        "threads": 1,
        "tvm": PINS["apache-tvm"],
        "tvm_ffi": PINS["apache-tvm-ffi"],
        "library_bytes": library.stat().st_size,
    }
    assert [layer["name"] for layer in layers] == [layer.name for layer in MODEL.layers]
    assert [layer["workload"] for layer in layers] == [layer.workload.key for layer in MODEL.layers]
    assert {layer["why"] for layer in layers} == {"default"}
    for layer, described in zip(MODEL.layers, layers, strict=True):
        first = kernels_for(layer.workload, HOST)[0]
        default = kernel(first).space(layer.workload, HOST).default
        assert (described["kernel"], described["config"]) == (first, default)


def test_manifest_tells_libraries_and_weights_apart(library: Path, tmp_path: Path) -> None:
    log = pipeline.Log(path=tmp_path / "none.jsonl")
    other = pipeline.build(
        MODEL, HOST, log, threads=1, weights=None, seed=SEED + 1, output=tmp_path / "net.so"
    )
    manifest = json.loads(library.with_suffix(".json").read_text())
    assert other["weights_sha256"] != manifest["weights_sha256"]
    assert other["library_sha256"] != manifest["library_sha256"]


@pytest.fixture
def copied(library: Path, tmp_path: Path) -> Callable[..., Path]:
    """The manifest with some of its fields changed, beside a file that stands for the library."""

    def copy(**changes: Any) -> Path:
        manifest = json.loads(library.with_suffix(".json").read_text())
        path = tmp_path / "copy.so"
        path.write_bytes(b"no library")
        path.with_suffix(".json").write_text(json.dumps(manifest | changes))
        return path

    return copy


def test_no_library(tmp_path: Path) -> None:
    path = tmp_path / "net.so"
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value) == (
        f"no library at {path}; expected a .so that build has written; "
        f"run: python -m tune build --target x86 -o {path}"
    )


NO_MANIFEST = (
    "no manifest can be read at {}; expected the .json that build writes beside the .so; "
    "build it again, or copy both files"
)


def test_no_manifest(copied: Callable[..., Path]) -> None:
    path = copied()
    path.with_suffix(".json").unlink()
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value) == NO_MANIFEST.format(path.with_suffix(".json"))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", "{}", '{"tvm": "1"}', "\xff"])
def test_broken_manifest(copied: Callable[..., Path], text: str) -> None:
    path = copied()
    path.with_suffix(".json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value) == NO_MANIFEST.format(path.with_suffix(".json"))


@pytest.mark.parametrize(
    "changes",
    [{"input": None}, {"input": {}}, {"input": {"shape": 7}}, {"target": {}}, {"target": "x86"}],
    ids=str,
)
def test_manifest_that_lacks_something(
    copied: Callable[..., Path], changes: dict[str, Any]
) -> None:
    path = copied(**changes)
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value) == NO_MANIFEST.format(path.with_suffix(".json"))


def test_other_tvm(copied: Callable[..., Path]) -> None:
    path = copied(tvm="0.26.0")
    with pytest.raises(SetupError) as error:
        load(path)
    assert str(error.value) == (
        f"{path} was built with TVM 0.26.0; expected {PINS['apache-tvm']}, whose byte code this "
        f"runtime reads; build it again"
    )


def test_other_cpu(copied: Callable[..., Path]) -> None:
    lacking = [name for name, device in X86.DEVICES.items() if not X86.can_run(device)]
    for device in (*lacking, "znver99"):
        path = copied(target={"kind": "x86", "device": device})
        with pytest.raises(SetupError) as error:
            load(path)
        assert str(error.value) == (
            f"{path} was built for {device}, whose code this machine cannot run; "
            f"expected a build for this machine; run: python -m tune build --target x86"
        )


@pytest.mark.parametrize("part", [slice(0), slice(100_000), slice(-1)], ids=str)
def test_library_that_was_copied_in_part(
    library: Path, copied: Callable[..., Path], part: slice
) -> None:
    """Mapping such a file can end the process with SIGBUS."""
    path = copied()
    path.write_bytes(library.read_bytes()[part])
    with pytest.raises(UsageError) as error:
        load(path)
    assert str(error.value) == (
        f"{path} is not the library that its manifest describes; expected the two files of one "
        f"build; build it again, or copy both files"
    )


def test_loads_without_torch_and_compiler(library: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy\n"
        "sys.modules['torch'] = None\n"
        "from tune.runtime import load\n"
        f"print(load({str(library)!r})(numpy.zeros({MODEL.input_shape}, 'float32')).shape)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert process.stdout == "(1, 5)\n"
