"""Checkpoints of every framework come out the same; what is wrong with one fits in a line."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from kernels.reference import reference
from kernels.tolerance import network_tolerance
from tune import weights
from tune.eager import MobileNetV1, from_weights
from tune.errors import UsageError
from tune.mobilenet import BODIES, EPSILON, MobileNet
from tune.weights import LayerWeights, Norm, Weights

torch.set_num_threads(1)
SMALL = MobileNet(alpha=0.25, resolution=32, classes=10)
TIMM_REPEATS = (1, 2, 2, 6, 2)  # of its arch_def: dsa_r1_k3_s1_c64, dsa_r2_k3_s2_c128, …
Tensors = dict[str, NDArray[np.float32]]


def slim(given: Weights) -> Tensors:
    """As TF-slim names and lays them out: HWIO, depthwise HWC1."""
    tensors: Tensors = {}
    for name, layer in given.items():
        if name == "head":
            scope = "MobilenetV1/Logits/Conv2d_1c_1x1"
            tensors[f"{scope}/weights"] = layer.wt[None, None]
            tensors[f"{scope}/biases"] = bias(layer)
            continue
        scope = "MobilenetV1/" + name.replace("stem", "Conv2d_0").replace("block", "Conv2d_")
        if name.endswith("depthwise"):
            tensors[f"{scope.replace('.', '_')}/depthwise_weights"] = layer.wt[..., None]
        else:
            wt = layer.wt if name == "stem" else layer.wt[None, None]
            tensors[f"{scope.replace('.', '_')}/weights"] = wt
        norm = f"{scope.replace('.', '_')}/BatchNorm"
        tensors[f"{norm}/gamma"] = norm_of(layer).gamma
        tensors[f"{norm}/beta"] = norm_of(layer).beta
        tensors[f"{norm}/moving_mean"] = norm_of(layer).mean
        tensors[f"{norm}/moving_variance"] = norm_of(layer).var
    return tensors


def timm(given: Weights) -> Tensors:
    """As the state dict of timm's mobilenetv1_100: OIHW, depthwise C1HW."""
    places = [(stage, at) for stage, count in enumerate(TIMM_REPEATS) for at in range(count)]
    tensors = torch_layer("conv_stem", "bn1", given["stem"], given["stem"].wt.transpose(3, 2, 0, 1))
    for number, (stage, at) in enumerate(places, start=1):
        depthwise, pointwise = given[f"block{number}.depthwise"], given[f"block{number}.pointwise"]
        place = f"blocks.{stage}.{at}"
        dw = depthwise.wt.transpose(2, 0, 1)[:, None]
        pw = pointwise.wt.T[:, :, None, None]
        tensors |= torch_layer(f"{place}.conv_dw", f"{place}.bn1", depthwise, dw)
        tensors |= torch_layer(f"{place}.conv_pw", f"{place}.bn2", pointwise, pw)
    head = given["head"]
    return tensors | {"classifier.weight": head.wt.T, "classifier.bias": bias(head)}


def torch_layer(conv: str, norm: str, layer: LayerWeights, wt: NDArray[np.float32]) -> Tensors:
    return {
        f"{conv}.weight": wt,
        f"{norm}.weight": norm_of(layer).gamma,
        f"{norm}.bias": norm_of(layer).beta,
        f"{norm}.running_mean": norm_of(layer).mean,
        f"{norm}.running_var": norm_of(layer).var,
        f"{norm}.num_batches_tracked": np.array(7),  # of no use here, and of no harm
    }


def norm_of(layer: LayerWeights) -> Norm:
    assert layer.norm is not None
    return layer.norm


def bias(layer: LayerWeights) -> NDArray[np.float32]:
    assert layer.bias is not None
    return layer.bias


def own(given: Weights) -> Tensors:
    """As the state dict of this project's module."""
    state = from_weights(given, SMALL).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def save(path: Path, tensors: Tensors, wrapper: str | None = None) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    else:
        state = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
        torch.save({wrapper: state, "epoch": 90} if wrapper else state, path)
    return path


def assert_equal(found: Weights, expected: Weights) -> None:
    assert list(found) == list(expected)
    for name, layer in expected.items():
        compare(found[name].wt, layer.wt, name)
        if layer.norm is None:
            compare(bias(found[name]), bias(layer), name)
        else:
            assert found[name].bias is None
            for part in fields(Norm):
                values = getattr(norm_of(found[name]), part.name)
                compare(values, getattr(layer.norm, part.name), f"{name} {part.name}")


def compare(found: NDArray[np.float32], expected: NDArray[np.float32], name: str) -> None:
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("scheme", [slim, timm, own])
def test_formats(tmp_path: Path, scheme: Callable[[Weights], Tensors], suffix: str) -> None:
    given = weights.random(SMALL, seed=1)
    path = save(tmp_path / f"net{suffix}", scheme(given))
    assert_equal(weights.read(path, SMALL), given)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_state_dict_may_be_wrapped(tmp_path: Path, wrapper: str) -> None:
    given = weights.random(SMALL, seed=1)
    path = save(tmp_path / "net.pt", own(given), wrapper)
    assert_equal(weights.read(path, SMALL), given)


@pytest.mark.parametrize("body", BODIES)
def test_a_network_trained_here_is_read_back(tmp_path: Path, body: str) -> None:
    model = MobileNet(alpha=0.25, classes=10, body=body)
    torch.manual_seed(0)
    network = MobileNetV1(model)
    torch.save(network.state_dict(), tmp_path / "net.pt")
    again = from_weights(weights.read(tmp_path / "net.pt", model), model)
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_controls_have_names_in_every_scheme() -> None:
    """Of full convolutions, and of a network that lacks five blocks."""
    for body, slim_scope, timm_conv in (
        ("full", "MobilenetV1/Conv2d_7", "blocks.3.1.conv"),
        ("shallow", "MobilenetV1/Conv2d_7_pointwise", "blocks.4.0.conv_pw"),
    ):
        model = MobileNet(body=body)
        layer = next(layer for layer in model.layers if layer.name in ("block7.conv", PW7))
        found = [scheme.names(layer, model)["wt"] for scheme in weights.SCHEMES[:2]]
        assert found == [f"{slim_scope}/weights", f"{timm_conv}.weight"]


PW7 = "block7.pointwise"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_read(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    given = weights.random(SMALL, seed=1)
    state = {name: torch.from_numpy(array).to(dtype) for name, array in own(given).items()}
    path = tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_torch_file(state, path)
    expected = from_weights(given, SMALL).to(dtype).float().state_dict()
    found = from_weights(weights.read(path, SMALL), SMALL).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


NORM = "MobilenetV1/Conv2d_4_depthwise/BatchNorm"
VARIANCE = f"{NORM}/moving_variance"
LOGITS = "MobilenetV1/Logits/Conv2d_1c_1x1"
WRONG: dict[str, tuple[Tensors, str]] = {
    "shape": (
        {f"{NORM}/beta": np.zeros(64, np.float32)},
        f"{NORM}/beta in PATH has shape (64,); expected (32,); "
        f"pass the --alpha that it was trained with",
    ),
    "layout": (
        {"MobilenetV1/Conv2d_0/weights": np.zeros((8, 3, 3, 3), np.float32)},
        "MobilenetV1/Conv2d_0/weights in PATH has shape (8, 3, 3, 3); expected (3, 3, 3, 8); "
        "pass the --alpha that it was trained with",
    ),
    "classes": (
        {
            f"{LOGITS}/weights": np.zeros((1, 1, 256, 12), np.float32),
            f"{LOGITS}/biases": np.zeros(12, np.float32),
        },
        "PATH has 12 classes; expected 10; pass --classes 12",
    ),
    "nan": (
        {VARIANCE: np.array([1.0] * 30 + [np.nan] * 2, np.float32)},
        f"{VARIANCE} in PATH holds nan in 2 of 32 values; expected finite, from 0 up; "
        f"train or fetch it again",
    ),
    "overflow": (
        {f"{NORM}/gamma": np.array([1.0] * 31 + [1e300])},
        f"{NORM}/gamma in PATH holds inf in 1 of 32 values; expected finite; "
        f"train or fetch it again",
    ),
    "negative variance": (
        {VARIANCE: np.array([-0.5] + [1.0] * 31, np.float32)},
        f"{VARIANCE} in PATH holds -0.5 in 1 of 32 values; expected finite, from 0 up; "
        f"train or fetch it again",
    ),
    "extra": (
        {"extra/a": np.zeros(1, np.float32), "extra/b": np.zeros(1, np.float32)},
        "tensors that no layer takes in PATH: extra/a, extra/b (2 in all); expected the 137 of "
        "MobileNet-V1; check that it is the right file",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors(tmp_path: Path, case: str) -> None:
    replaced, message = WRONG[case]
    tensors = slim(weights.random(SMALL, seed=1)) | replaced
    refused(save(tmp_path / "net.safetensors", tensors), message)


def test_missing_tensors(tmp_path: Path) -> None:
    tensors = slim(weights.random(SMALL, seed=1))
    kept = {name: array for name, array in tensors.items() if "BatchNorm/gamma" not in name}
    refused(
        save(tmp_path / "net.safetensors", kept),
        "tensors missing from PATH: MobilenetV1/Conv2d_0/BatchNorm/gamma, "
        "MobilenetV1/Conv2d_10_depthwise/BatchNorm/gamma, "
        "MobilenetV1/Conv2d_10_pointwise/BatchNorm/gamma, … (27 in all); expected the 137 of "
        "MobileNet-V1; check that it is the right file",
    )


def test_another_network(tmp_path: Path) -> None:
    other = {f"layer{number}.weight": np.zeros(1, np.float32) for number in range(5)}
    refused(
        save(tmp_path / "net.pt", other),
        "no MobileNet-V1 among the 5 tensors of PATH: layer0.weight, layer1.weight, "
        "layer2.weight, …; expected the names of TF-slim, timm or tune.eager; "
        "check that it is the right file",
    )


def test_classes_of_imagenet(tmp_path: Path) -> None:
    """1000 classes, as timm has, where 1001 are the default."""
    model = MobileNet(alpha=0.25, classes=1000)
    given = weights.random(model, seed=1)
    path = save(tmp_path / "net.pt", timm(given))
    assert_equal(weights.read(path, model), given)
    message = "PATH has 1000 classes; expected 1001; pass --classes 1000"
    refused(path, message, MobileNet(alpha=0.25))


def test_no_file(tmp_path: Path) -> None:
    message = "no checkpoint at PATH; expected a file, .safetensors, .pt, .pth; check the path"
    refused(tmp_path / "net.pt", message)
    refused(tmp_path, message)


def test_wrong_suffix(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    refused(
        path,
        "checkpoint PATH ends in '.onnx'; expected .safetensors, .pt, .pth; rename or convert it",
    )


def test_garbage_in_safetensors(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.safetensors", slim(weights.random(SMALL, seed=1))).read_bytes()
    path = tmp_path / "net.safetensors"
    for content in (b"", b"garbage", bytes(8), b"\xff" * 100, whole[:100], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(UsageError) as error:
            weights.read(path, SMALL)
        assert re.fullmatch(
            rf"{path} is no safetensors file, .+; expected a whole one; fetch or save it again",
            str(error.value),
        )


def test_garbage_in_torch_files(tmp_path: Path) -> None:
    """Cut short, random or of another kind: always the same line, never torch's own exception."""
    rng = np.random.default_rng(0)
    whole = save(tmp_path / "whole.pt", own(weights.random(SMALL, seed=1))).read_bytes()
    contents = [whole[:length] for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1)]
    for opcode in (b"\x80\x02", b"\x80\x04\x95", b"(", b"]", b"}", b"N.", b"I1\n.", b"PK\x03\x04"):
        contents += [opcode + rng.bytes(length) for length in range(25)]
    path = tmp_path / "net.pt"
    for content in contents:
        path.write_bytes(content)
        refused(path, UNREADABLE)


UNREADABLE = (
    "PATH is no state dict that can be read; expected real tensors by name; "
    "write it with torch.save(network.state_dict(), path)"
)


@pytest.mark.parametrize(
    "found",
    [
        [torch.zeros(1)],
        torch.zeros(1),
        {0: torch.zeros(1)},
        {"a": 1},
        {"state_dict": 3},
        {"a": torch.zeros(1, dtype=torch.complex64)},
        MobileNetV1(MobileNet(alpha=0.25)),
    ],
    ids=["list", "tensor", "number-as-name", "no-tensor", "no-dict", "complex", "whole-module"],
)
def test_other_things_in_torch_files(tmp_path: Path, found: object) -> None:
    path = tmp_path / "net.pth"
    torch.save(found, path)
    refused(path, UNREADABLE)


def refused(path: Path, message: str, model: MobileNet = SMALL) -> None:
    with pytest.raises(UsageError) as error:
        weights.read(path, model)
    assert str(error.value) == message.replace("PATH", str(path))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("variant", EPSILON)
@pytest.mark.parametrize("resolution", [32, 45])
def test_folded_layers_compute_the_unfolded_module(
    resolution: int, variant: str, body: str
) -> None:
    """The definition of each workload, layer after layer, against torch in float64."""
    model = MobileNet(
        alpha=0.25, resolution=resolution, batch=2, classes=10, variant=variant, body=body
    )
    given = weights.random(model, seed=4)
    x = np.random.default_rng(5).normal(0, 2, model.input_shape)
    with torch.no_grad():
        images = torch.from_numpy(x).permute(0, 3, 1, 2)
        expected = from_weights(given, model).double()(images).numpy()
    y = chained(model, weights.fold(given, model), x.astype(np.float32))
    terms = [layer.workload.terms for layer in model.layers]
    atol = network_tolerance(model.dtype, terms, scale=float(np.abs(expected).max()))
    np.testing.assert_allclose(y, expected, rtol=0, atol=atol)

    other = MobileNet(variant="torch" if variant == "tf" else "tf")  # of another epsilon
    wrong = chained(model, weights.fold(given, other), x.astype(np.float32))
    assert np.abs(wrong - expected).max() > 4 * atol


def chained(model: MobileNet, folded: weights.Folded, x: NDArray[np.float32]) -> weights.Array:
    for layer in model.layers:
        x = reference(layer.workload, x, folded[layer.name])
    return x


def test_folding_is_done_in_float64() -> None:
    """A tiny variance beside a large mean: float32 sums would be off in the last bits."""
    model = MobileNet(alpha=0.25, classes=10, variant="torch")
    given = weights.random(model, seed=6)
    for name, (wt, offset) in weights.fold(given, model).items():
        if name == "head":
            assert wt is given[name].wt
            assert offset is given[name].bias
            continue
        norm = norm_of(given[name])
        gamma, beta, mean, var = (
            getattr(norm, part).astype(np.float64) for part in ("gamma", "beta", "mean", "var")
        )
        scale = gamma / np.sqrt(var + 1e-5)
        assert wt.dtype == offset.dtype == np.float32
        np.testing.assert_array_equal(wt, (given[name].wt * scale).astype(np.float32))
        np.testing.assert_array_equal(offset, (beta - mean * scale).astype(np.float32))


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_random_weights_keep_activations_of_order_one(alpha: float) -> None:
    model = MobileNet(alpha=alpha, resolution=64, batch=4, classes=100)
    network = from_weights(weights.random(model, seed=7), model)
    sizes: list[float] = []
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU6):
            module.register_forward_hook(
                lambda _module, _x, y: sizes.append(y.square().mean().sqrt().item())
            )
    x = np.random.default_rng(8).uniform(-1, 1, (4, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        logits = network(torch.from_numpy(x))
    assert len(sizes) == 27
    assert 0.3 < min(sizes) <= max(sizes) < 3
    assert 0.3 < logits.std() < 5
    assert (logits[0] - logits[1]).std() > 0.05


def test_random_weights_follow_the_seed() -> None:
    assert_equal(weights.random(SMALL, seed=1), weights.random(SMALL, seed=1))
    with pytest.raises(AssertionError):
        assert_equal(weights.random(SMALL, seed=1), weights.random(SMALL, seed=2))


def test_the_bundled_checkpoint_is_for_its_network_alone() -> None:
    for model in (MobileNet(), MobileNet(resolution=160, batch=2)):
        path = weights.bundled(model)
        assert path is not None
        assert list(weights.read(path, model)) == [layer.name for layer in model.layers]
    for model in (
        MobileNet(alpha=0.5),
        MobileNet(classes=1000),
        MobileNet(variant="torch"),
        MobileNet(body="shallow"),
    ):
        assert weights.bundled(model) is None
