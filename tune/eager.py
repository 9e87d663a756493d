"""MobileNet-V1 as a PyTorch module, trainable as it stands: the eager baseline.

Its state dict carries the layer names of `tune.mobilenet`, so that a network trained here is tuned
and built without conversion.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from kernels.workload import Conv, Depthwise, Head, Pointwise
from tune.mobilenet import MobileNet
from tune.weights import Weights


# mypy does not look into torch: to it, torch's classes are Any, which it will not see subclassed.
class ConvNorm(nn.Sequential):  # type: ignore[misc]
    """A convolution, its batch norm and ReLU6; (N,Ci,Hi,Wi) -> (N,Co,Ho,Wo)."""

    def __init__(self, workload: Conv | Depthwise | Pointwise, epsilon: float) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        padding = 0
        if isinstance(workload, Pointwise):
            inputs, kernel, stride, groups = workload.Ci, 1, 1, 1
        else:
            kernel, stride = workload.K, workload.stride
            depthwise = isinstance(workload, Depthwise)
            inputs = workload.x_shape[-1]
            groups = inputs if depthwise else 1
            top, bottom, left, right = workload.pad
            if top == bottom == left == right:
                padding = top
            else:
                parts["pad"] = nn.ZeroPad2d((left, right, top, bottom))
        parts["conv"] = nn.Conv2d(
            inputs, workload.Co, kernel, stride, padding, groups=groups, bias=False
        )
        parts["norm"] = nn.BatchNorm2d(workload.Co, eps=epsilon)
        parts["act"] = nn.ReLU6()
        super().__init__(parts)


class DepthwiseSeparable(nn.Sequential):  # type: ignore[misc]
    """A depthwise and a pointwise convolution, each with batch norm and ReLU6."""

    def __init__(self, depthwise: Depthwise, pointwise: Pointwise, epsilon: float) -> None:
        super().__init__(
            OrderedDict(
                depthwise=ConvNorm(depthwise, epsilon), pointwise=ConvNorm(pointwise, epsilon)
            )
        )


class MobileNetV1(nn.Module):  # type: ignore[misc]
    """The network that `model` describes; images (N,3,H,W) -> logits (N,classes)."""

    def __init__(self, model: MobileNet) -> None:
        super().__init__()
        order: list[str] = []  # of the modules between image and pooling
        for layer in model.layers:
            block, _, kind = layer.name.partition(".")
            match layer.workload:
                case Conv() as conv:
                    module = ConvNorm(conv, model.epsilon)
                    body = nn.Sequential(OrderedDict(conv=module)) if kind else module
                case Depthwise() as depthwise:
                    continue  # half of a block; the pointwise that comes next is the other
                case Pointwise() as pointwise:
                    body = DepthwiseSeparable(depthwise, pointwise, model.epsilon)
                case Head() as head:
                    self.pool = nn.AdaptiveAvgPool2d(1)
                    self.head = nn.Linear(head.Ci, head.Co)
                    break
            self.add_module(block, body)
            order.append(block)
        self._order = tuple(order)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for block in self._order:
            x = getattr(self, block)(x)
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """For an optimizer: every parameter once, no weight decay on the depthwise filters.

        They have so few weights that decay does harm; the paper, section 3.
        """
        filters = [
            module.weight
            for module in self.modules()
            if isinstance(module, nn.Conv2d) and module.groups > 1
        ]
        depthwise = {id(weight) for weight in filters}
        others = [weight for weight in self.parameters() if id(weight) not in depthwise]
        return [
            {"params": others, "weight_decay": weight_decay},
            {"params": filters, "weight_decay": 0.0},
        ]


def from_weights(weights: Weights, model: MobileNet) -> MobileNetV1:
    """The module with these weights, in evaluation mode."""
    network = MobileNetV1(model)
    state = network.state_dict()
    for layer in model.layers:
        given, workload = weights[layer.name], layer.workload
        wt = torch.from_numpy(given.wt)
        if isinstance(workload, Head):
            assert given.bias is not None
            state["head.weight"], state["head.bias"] = wt.T, torch.from_numpy(given.bias)
            continue
        assert given.norm is not None
        match workload:
            case Conv():
                filters = wt.permute(3, 2, 0, 1)
            case Depthwise():
                filters = wt.permute(2, 0, 1)[:, None]
            case Pointwise():
                filters = wt.T[:, :, None, None]
        state[f"{layer.name}.conv.weight"] = filters
        for name, array in (
            ("weight", given.norm.gamma),
            ("bias", given.norm.beta),
            ("running_mean", given.norm.mean),
            ("running_var", given.norm.var),
        ):
            state[f"{layer.name}.norm.{name}"] = torch.from_numpy(array)
    network.load_state_dict(state)
    network.eval()
    return network
