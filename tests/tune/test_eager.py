"""The PyTorch module: trainable, decayed as the paper advises, and faithful to its description."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tune import weights
from tune.eager import DepthwiseSeparable, MobileNetV1, from_weights
from tune.mobilenet import BODIES, MobileNet

torch.set_num_threads(1)
SMALL = MobileNet(alpha=0.25, resolution=32, classes=10)


def images(model: MobileNet, seed: int = 0) -> torch.Tensor:
    """(N,3,H,W), from -1 to 1."""
    N, H, W, C = model.input_shape
    values = np.random.default_rng(seed).uniform(-1, 1, (N, C, H, W))
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize("body", BODIES)
def test_has_the_parameters_that_are_counted(body: str) -> None:
    model = MobileNet(alpha=0.5, body=body)
    assert sum(weight.numel() for weight in MobileNetV1(model).parameters()) == model.parameters


def test_names_are_those_of_the_layers() -> None:
    filters = [name for name in MobileNetV1(SMALL).state_dict() if name.endswith("conv.weight")]
    assert filters == [f"{layer.name}.conv.weight" for layer in SMALL.layers[:-1]]


def test_norm_and_activation_follow_every_convolution() -> None:
    network = MobileNetV1(MobileNet(alpha=0.25, variant="torch"))
    block = network.get_submodule("block1")
    assert isinstance(block, DepthwiseSeparable)
    kinds = [type(module) for module in block.modules() if not list(module.children())]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU6] * 2


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("resolution", [32, 33, 47])
def test_answers_any_resolution(body: str, resolution: int) -> None:
    model = MobileNet(alpha=0.25, resolution=resolution, batch=2, classes=7, body=body)
    assert MobileNetV1(model).eval()(images(model)).shape == (2, 7)


@pytest.mark.parametrize(
    ("variant", "resolution", "padded"), [("tf", 224, 5), ("tf", 225, 0), ("torch", 224, 0)]
)
def test_pads_apart_only_where_sides_differ(variant: str, resolution: int, padded: int) -> None:
    network = MobileNetV1(MobileNet(alpha=0.25, variant=variant, resolution=resolution))
    assert sum(isinstance(module, nn.ZeroPad2d) for module in network.modules()) == padded


@pytest.mark.parametrize(("variant", "epsilon"), [("tf", 1e-3), ("torch", 1e-5)])
def test_norms_have_the_epsilon_of_the_variant(variant: str, epsilon: float) -> None:
    network = MobileNetV1(MobileNet(alpha=0.25, variant=variant))
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {epsilon}


@pytest.mark.parametrize("resolution", [64, 65])
def test_variants_differ(resolution: int) -> None:
    """By their padding on an even image, by their epsilon alone on an odd one."""
    logits = []
    for variant in ("tf", "torch"):
        model = MobileNet(alpha=0.25, resolution=resolution, classes=10, variant=variant)
        with torch.no_grad():
            logits.append(from_weights(weights.random(SMALL, seed=3), model)(images(model)))
    assert (logits[0] - logits[1]).abs().max() > 1e-4 * logits[0].abs().max()


def test_decay_spares_the_depthwise_filters() -> None:
    network = MobileNetV1(SMALL)
    decayed, spared = network.parameter_groups(weight_decay=0.5)
    names = {id(weight): name for name, weight in network.named_parameters()}
    assert [names[id(weight)] for weight in spared["params"]] == [
        f"block{number}.depthwise.conv.weight" for number in range(1, 14)
    ]
    every = sorted(names[id(weight)] for weight in decayed["params"] + spared["params"])
    assert every == sorted(names.values())

    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameter_groups(weight_decay=0.5), lr=1.0)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in network.named_parameters():
        kept = 1.0 if name.endswith("depthwise.conv.weight") else 0.5
        torch.testing.assert_close(weight.detach(), kept * before[name], msg=name)


@pytest.mark.parametrize("body", BODIES)
def test_trains(body: str) -> None:
    torch.manual_seed(0)
    model = MobileNet(alpha=0.25, resolution=64, batch=8, classes=10, body=body)
    network, x, labels = MobileNetV1(model).train(), images(model), torch.arange(8)
    optimizer = torch.optim.SGD(network.parameter_groups(weight_decay=4e-5), lr=0.1)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        missing = [name for name, weight in network.named_parameters() if weight.grad is None]
        assert not missing
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_from_weights_is_in_evaluation_mode_and_owns_its_values() -> None:
    given = weights.random(SMALL, seed=1)
    network = from_weights(given, SMALL)
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert all(layer.wt.any() for layer in given.values())


def test_torch_loads_with_this_module_alone() -> None:
    code = (
        "import sys, tune.images, tune.mobilenet, tune.weights as weights\n"
        "model = tune.mobilenet.MobileNet()\n"
        "weights.fold(weights.read(weights.bundled(model), model), model)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
