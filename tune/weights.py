"""Checkpoints in, folded weights out.

A checkpoint is read into one canonical form whatever framework wrote it: filters in the layouts of
`kernels.workload`, and what batch norm has learnt beside them. Folding then leaves one filter and
one bias a layer.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.workload import Conv, Depthwise, Head, Single
from tune.errors import UsageError
from tune.mobilenet import Layer, MobileNet

Array = NDArray[np.float32]

IMAGENET = Path(__file__).parent / "data" / "mobilenet_v1_1.0_224_tf.safetensors"
SHOWN = 3  # tensor names in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """Batch norm of one layer: y = gamma * (x - mean) / sqrt(var + epsilon) + beta; each (Co,)."""

    gamma: Array
    beta: Array
    mean: Array
    var: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """A filter in its canonical layout; behind it a batch norm or, in the head, a bias (Co,)."""

    wt: Array
    norm: Norm | None = None
    bias: Array | None = None


Weights = dict[str, LayerWeights]  # by layer name
Folded = dict[str, tuple[Array, Array]]  # wt and bias by layer name


def fold(weights: Weights, model: MobileNet) -> Folded:
    """One filter and one bias a layer, batch norm multiplied in; computed in float64."""
    folded: Folded = {}
    for name, layer in weights.items():
        if layer.norm is None:
            bias = np.zeros(layer.wt.shape[-1], np.float32) if layer.bias is None else layer.bias
            folded[name] = (layer.wt, bias)
            continue
        norm = layer.norm
        scale = norm.gamma / np.sqrt(norm.var.astype(np.float64) + model.epsilon)
        shift = norm.beta - norm.mean * scale  # the output channel is every layout's last axis
        folded[name] = ((layer.wt * scale).astype(np.float32), shift.astype(np.float32))
    return folded


def random(model: MobileNet, seed: int) -> Weights:
    """Weights that keep activations of order one, for timing and for tests; the same for a seed."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for layer in model.layers:
        workload = layer.workload
        channels = workload.Co
        fan_in = workload.Ci if isinstance(workload, Head) else workload.terms
        spread = np.float32((2 / fan_in) ** 0.5)
        wt = rng.standard_normal(workload.weight_shapes[0], np.float32) * spread
        if isinstance(workload, Head):
            bias = rng.normal(0, 0.1, channels).astype(np.float32)
            weights[layer.name] = LayerWeights(wt=wt, bias=bias)
        else:
            gamma, beta, mean, var = (
                rng.uniform(low, high, channels).astype(np.float32)
                for low, high in ((0.8, 1.2), (-0.1, 0.3), (-0.1, 0.1), (0.5, 1.5))
            )
            norm = Norm(gamma=gamma, beta=beta, mean=mean, var=var)
            weights[layer.name] = LayerWeights(wt=wt, norm=norm)
    return weights


def bundled(model: MobileNet) -> Path | None:
    """The ImageNet checkpoint that comes with the project, if it fits `model`."""
    fits = (model.alpha, model.classes, model.variant, model.body) == (1.0, 1001, "tf", "separable")
    return IMAGENET if fits else None


def read(path: Path, model: MobileNet) -> Weights:
    """The checkpoint at `path`, `.safetensors` or `.pt`, in canonical form.

    The names in it tell who wrote it: TF-slim, timm (`mobilenetv1_100` and its kin) or this
    project's own PyTorch module. Of any float type; a state dict may lie under the key
    `state_dict` or `model`. UsageError when it is none of them or does not fit `model`.
    """
    tensors = _tensors(path)
    scheme = next((scheme for scheme in SCHEMES if scheme.marker in tensors), None)
    if scheme is None:
        raise UsageError(
            f"no MobileNet-V1 among the {len(tensors)} tensors of {path}: "
            f"{_named(sorted(tensors)) or 'nothing'}; expected the names of TF-slim, timm or "
            f"tune.eager; check that it is the right file"
        )
    wanted = {layer.name: scheme.names(layer, model) for layer in model.layers}
    _check_names(path, tensors, {name for names in wanted.values() for name in names.values()})
    weights: Weights = {}
    for layer in model.layers:
        names = wanted[layer.name]
        raw = {part: tensors[name] for part, name in names.items()}
        _check_shapes(path, layer.workload, names, raw, scheme)
        _check_values(path, names, raw)
        wt = np.ascontiguousarray(scheme.canonical(layer.workload, raw.pop("wt")))
        if "bias" in raw:
            weights[layer.name] = LayerWeights(wt=wt, bias=raw["bias"])
        else:
            weights[layer.name] = LayerWeights(wt=wt, norm=Norm(**raw))
    return weights


class _Scheme(NamedTuple):
    """How one framework names and lays out the tensors of a MobileNet.

    marker     a tensor that tells the scheme
    names      from a layer of a model to the names of wt and of gamma, beta, mean, var or bias
    shape      the shape of a filter in the file
    canonical  from there to the canonical layout
    """

    marker: str
    names: Callable[[Layer, MobileNet], dict[str, str]]
    shape: Callable[[Single], tuple[int, ...]]
    canonical: Callable[[Single, Array], Array]


def _slim_names(layer: Layer, model: MobileNet) -> dict[str, str]:
    if layer.name == "head":
        scope = "MobilenetV1/Logits/Conv2d_1c_1x1"
        return {"wt": f"{scope}/weights", "bias": f"{scope}/biases"}
    block, _, kind = layer.name.partition(".")
    scope = f"Conv2d_{_number(block)}" + (f"_{kind}" if kind in ("depthwise", "pointwise") else "")
    wt = "depthwise_weights" if kind == "depthwise" else "weights"
    norm = {part: f"MobilenetV1/{scope}/BatchNorm/{name}" for part, name in SLIM_NORM.items()}
    return {"wt": f"MobilenetV1/{scope}/{wt}"} | norm


def _slim_shape(workload: Single) -> tuple[int, ...]:
    match workload:
        case Conv():
            return workload.weight_shapes[0]
        case Depthwise():
            return (*workload.weight_shapes[0], 1)
    return (1, 1, *workload.weight_shapes[0])


def _slim_canonical(workload: Single, wt: Array) -> Array:
    return wt.reshape(workload.weight_shapes[0])


def _timm_names(layer: Layer, model: MobileNet) -> dict[str, str]:
    """timm groups blocks by width: a new stage wherever the channels grow."""
    if layer.name == "head":
        return {"wt": "classifier.weight", "bias": "classifier.bias"}
    block, _, kind = layer.name.partition(".")
    if block == "stem":
        conv, norm = "conv_stem", "bn1"
    else:
        widths = [width for width, _ in model.blocks[: _number(block)]]
        place = f"blocks.{len(set(widths)) - 1}.{widths.count(widths[-1]) - 1}"
        parts = {"depthwise": ("conv_dw", "bn1"), "pointwise": ("conv_pw", "bn2")}
        conv, norm = (f"{place}.{part}" for part in parts.get(kind, ("conv", "bn1")))
    return {"wt": f"{conv}.weight"} | _torch_norm(norm)


def _own_names(layer: Layer, model: MobileNet) -> dict[str, str]:
    if layer.name == "head":
        return {"wt": "head.weight", "bias": "head.bias"}
    return {"wt": f"{layer.name}.conv.weight"} | _torch_norm(f"{layer.name}.norm")


def _number(block: str) -> int:
    """0 of `stem`, n of `block<n>`."""
    return 0 if block == "stem" else int(block.removeprefix("block"))


def _torch_norm(prefix: str) -> dict[str, str]:
    return {part: f"{prefix}.{name}" for part, name in TORCH_NORM.items()}


def _torch_shape(workload: Single) -> tuple[int, ...]:
    match workload:
        case Conv():
            K, _, Ci, Co = workload.weight_shapes[0]
            return (Co, Ci, K, K)
        case Depthwise():
            K, _, C = workload.weight_shapes[0]
            return (C, 1, K, K)
        case Head():
            return workload.weight_shapes[0][::-1]
    return (*workload.weight_shapes[0][::-1], 1, 1)


def _torch_canonical(workload: Single, wt: Array) -> Array:
    match workload:
        case Conv():
            return wt.transpose(2, 3, 1, 0)
        case Depthwise():
            return wt[:, 0].transpose(1, 2, 0)
    return wt.reshape(wt.shape[:2]).T


SLIM_NORM = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "var": "moving_variance"}
TORCH_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}

SCHEMES = (
    _Scheme("MobilenetV1/Conv2d_0/weights", _slim_names, _slim_shape, _slim_canonical),
    _Scheme("conv_stem.weight", _timm_names, _torch_shape, _torch_canonical),
    _Scheme("stem.conv.weight", _own_names, _torch_shape, _torch_canonical),
)
COUNTERS = ("num_batches_tracked", "global_step")  # say nothing about the network

# What torch.load raises on bytes that are no checkpoint, or on one that needs code to be run.
UNPICKLABLE = (
    *(pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError),
    *(EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
)


def _tensors(path: Path) -> dict[str, Array]:
    """All tensors of a checkpoint file by name, as float32. UsageError when it cannot be read."""
    readers = {".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
    known = ", ".join(readers)
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}; expected a file, {known}; check the path")
    if path.suffix not in readers:
        raise UsageError(
            f"checkpoint {path} ends in {path.suffix!r}; expected {known}; rename or convert it"
        )
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
        return {
            name: np.asarray(value, np.float32)
            for name, value in readers[path.suffix](path).items()
            if not name.endswith(COUNTERS)
        }


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: Mapping[str, Any] = load_file(path)
    except TypeError:  # of a type that NumPy has no name for, such as bfloat16
        from safetensors.torch import load_file as load_torch

        tensors = {name: tensor.float().numpy() for name, tensor in load_torch(path).items()}
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{path} is no safetensors file, {error}; expected a whole one; fetch or save it again"
        ) from None
    return tensors


def _read_torch(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles; the outcome says enough
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UNPICKLABLE:
        found = None
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and not tensor.is_complex()
        for name, tensor in found.items()
    ):
        raise UsageError(
            f"{path} is no state dict that can be read; expected real tensors by name; "
            f"write it with torch.save(network.state_dict(), path)"
        )
    return {name: tensor.detach().float().numpy() for name, tensor in found.items()}


def _check_names(path: Path, tensors: Mapping[str, Array], wanted: set[str]) -> None:
    missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    for names, fault in ((missing, "missing from"), (extra, "that no layer takes in")):
        if names:
            raise UsageError(
                f"tensors {fault} {path}: {_named(names)} ({len(names)} in all); expected the "
                f"{len(wanted)} of MobileNet-V1; check that it is the right file"
            )


def _check_shapes(
    path: Path,
    workload: Single,
    names: Mapping[str, str],
    raw: Mapping[str, Array],
    scheme: _Scheme,
) -> None:
    if isinstance(workload, Head) and raw["bias"].ndim == 1 and raw["bias"].size != workload.Co:
        found = raw["bias"].size
        raise UsageError(
            f"{path} has {found} classes; expected {workload.Co}; pass --classes {found}"
        )
    for part, array in raw.items():
        expected = scheme.shape(workload) if part == "wt" else (workload.Co,)
        if array.shape != expected:
            raise UsageError(
                f"{names[part]} in {path} has shape {array.shape}; expected {expected}; "
                f"pass the --alpha that it was trained with"
            )


def _check_values(path: Path, names: Mapping[str, str], raw: Mapping[str, Array]) -> None:
    for part, array in raw.items():
        least, allowed = (0, "finite, from 0 up") if part == "var" else (-np.inf, "finite")
        bad = array[~np.isfinite(array) | (array < least)]
        if bad.size:
            raise UsageError(
                f"{names[part]} in {path} holds {bad[0]} in {bad.size} of {array.size} values; "
                f"expected {allowed}; train or fetch it again"
            )


def _named(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
