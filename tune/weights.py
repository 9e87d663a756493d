"""Checkpoints in, folded weights out.

A checkpoint is read into one canonical form whatever framework wrote it: filters in the layouts of
`kernels.workload`, and what batch norm has learnt beside them. Folding then leaves one filter and
one bias a layer.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.workload import Conv, Depthwise, Head, Workload
from tune.errors import UsageError
from tune.mobilenet import BLOCKS, Layer, MobileNet

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
    """A filter in its canonical layout, and behind it a batch norm or, in the head, a bias (Co,)."""

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
        wt = rng.standard_normal(workload.wt_shape, np.float32) * spread
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
    project's own PyTorch module. UsageError when it is none of them or does not fit `model`.
    """
    tensors = _tensors(path)
    scheme = next((scheme for scheme in SCHEMES if scheme.marker in tensors), None)
    if scheme is None:
        raise UsageError(
            f"{path} holds no MobileNet-V1 that is known, its first tensors are "
            f"{_named(sorted(tensors))}; expected names of TF-slim, timm or tune.eager"
        )
    wanted = {layer.name: scheme.names(layer) for layer in model.layers}
    _check_names(path, tensors, {name for names in wanted.values() for name in names.values()})
    weights: Weights = {}
    for layer in model.layers:
        names = wanted[layer.name]
        raw = {part: tensors[name] for part, name in names.items()}
        _check_shapes(path, layer, names, raw, scheme)
        wt = np.ascontiguousarray(scheme.canonical(layer.workload, raw.pop("wt")))
        if "bias" in raw:
            weights[layer.name] = LayerWeights(wt=wt, bias=raw["bias"])
        else:
            weights[layer.name] = LayerWeights(wt=wt, norm=Norm(**raw))
    return weights


class _Scheme(NamedTuple):
    """How one framework names and lays out the tensors of a MobileNet.

    marker     a tensor that tells the scheme
    names      from a layer to the names of wt and of gamma, beta, mean, var or bias
    shape      the shape of a filter in the file
    canonical  from there to the canonical layout
    """

    marker: str
    names: Callable[[Layer], dict[str, str]]
    shape: Callable[[Workload], tuple[int, ...]]
    canonical: Callable[[Workload, Array], Array]


def _slim_names(layer: Layer) -> dict[str, str]:
    if layer.name == "head":
        return {part: f"MobilenetV1/Logits/Conv2d_1c_1x1/{name}" for part, name in SLIM_HEAD.items()}
    block, _, kind = layer.name.partition(".")
    scope = "Conv2d_0" if block == "stem" else f"Conv2d_{block.removeprefix('block')}_{kind}"
    wt = "depthwise_weights" if kind == "depthwise" else "weights"
    norm = {part: f"MobilenetV1/{scope}/BatchNorm/{name}" for part, name in SLIM_NORM.items()}
    return {"wt": f"MobilenetV1/{scope}/{wt}"} | norm


def _slim_shape(workload: Workload) -> tuple[int, ...]:
    match workload:
        case Conv():
            return workload.wt_shape
        case Depthwise():
            return (*workload.wt_shape, 1)
    return (1, 1, *workload.wt_shape)


def _slim_canonical(workload: Workload, wt: Array) -> Array:
    return wt.reshape(workload.wt_shape)


def _timm_names(layer: Layer) -> dict[str, str]:
    if layer.name == "head":
        return {"wt": "classifier.weight", "bias": "classifier.bias"}
    block, _, kind = layer.name.partition(".")
    if block == "stem":
        conv, norm = "conv_stem", "bn1"
    else:
        stage, position = TIMM_PLACES[int(block.removeprefix("block")) - 1]
        place = f"blocks.{stage}.{position}"
        conv, norm = f"{place}.conv_{kind[0]}w", f"{place}.bn{1 if kind == 'depthwise' else 2}"
    return {"wt": f"{conv}.weight"} | _torch_norm(norm)


def _own_names(layer: Layer) -> dict[str, str]:
    if layer.name == "head":
        return {"wt": "head.weight", "bias": "head.bias"}
    return {"wt": f"{layer.name}.conv.weight"} | _torch_norm(f"{layer.name}.norm")


def _torch_norm(prefix: str) -> dict[str, str]:
    return {part: f"{prefix}.{name}" for part, name in TORCH_NORM.items()}


def _torch_shape(workload: Workload) -> tuple[int, ...]:
    match workload:
        case Conv():
            K, _, Ci, Co = workload.wt_shape
            return (Co, Ci, K, K)
        case Depthwise():
            K, _, C = workload.wt_shape
            return (C, 1, K, K)
        case Head():
            return workload.wt_shape[::-1]
    return (*workload.wt_shape[::-1], 1, 1)


def _torch_canonical(workload: Workload, wt: Array) -> Array:
    match workload:
        case Conv():
            return wt.transpose(2, 3, 1, 0)
        case Depthwise():
            return wt[:, 0].transpose(1, 2, 0)
    return wt.reshape(wt.shape[:2]).T


SLIM_HEAD = {"wt": "weights", "bias": "biases"}
SLIM_NORM = {"gamma": "gamma", "beta": "beta", "mean": "moving_mean", "var": "moving_variance"}
TORCH_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}

# timm groups blocks by width, a new stage wherever the channels grow: (stage, position) of each.
_WIDTHS = [width for width, _ in BLOCKS]
_STAGES = sorted(set(_WIDTHS))
TIMM_PLACES = [
    (_STAGES.index(width), _WIDTHS[:number].count(width)) for number, width in enumerate(_WIDTHS)
]

SCHEMES = (
    _Scheme("MobilenetV1/Conv2d_0/weights", _slim_names, _slim_shape, _slim_canonical),
    _Scheme("conv_stem.weight", _timm_names, _torch_shape, _torch_canonical),
    _Scheme("stem.conv.weight", _own_names, _torch_shape, _torch_canonical),
)
COUNTERS = ("num_batches_tracked", "global_step")  # say nothing about the network


def _tensors(path: Path) -> dict[str, Array]:
    """All tensors of a checkpoint file by name, as float32. UsageError when it cannot be read."""
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}; expected a .safetensors or .pt file")
    readers = {".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
    if path.suffix not in readers:
        raise UsageError(
            f"checkpoint {path} ends in {path.suffix!r}; expected one of {', '.join(readers)}"
        )
    try:
        found = readers[path.suffix](path)
        tensors = {name: np.asarray(value, np.float32) for name, value in found.items()}
    except (ValueError, TypeError, KeyError, AttributeError, EOFError, RuntimeError, OSError,
            pickle.UnpicklingError) as error:
        raise UsageError(
            f"{path} is no checkpoint: {str(error).splitlines()[0][:120] if str(error) else error!r}; "
            f"expected named tensors, as safetensors or torch.save write them"
        ) from None
    return {name: value for name, value in tensors.items() if not name.endswith(COUNTERS)}


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: Mapping[str, Any] = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return tensors


def _read_torch(path: Path) -> Mapping[str, Any]:
    import torch

    found = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    return {name: tensor.detach().float().numpy() for name, tensor in found.items()}


def _check_names(path: Path, tensors: Mapping[str, Array], wanted: set[str]) -> None:
    missing, extra = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    if missing:
        raise UsageError(
            f"{path} lacks {len(missing)} tensors: {_named(missing)}; expected a whole network of "
            f"13 blocks; check that the file is MobileNet-V1"
        )
    if extra:
        raise UsageError(
            f"{path} holds {len(extra)} tensors that no layer takes: {_named(extra)}; expected "
            f"none; check that the file is MobileNet-V1"
        )


def _check_shapes(
    path: Path, layer: Layer, names: Mapping[str, str], raw: Mapping[str, Array], scheme: _Scheme
) -> None:
    workload = layer.workload
    for part, array in raw.items():
        expected = scheme.shape(workload) if part == "wt" else (workload.Co,)
        if layer.name == "head" and part == "bias" and array.shape != expected:
            raise UsageError(
                f"{path} has {array.size} classes; expected {workload.Co}; "
                f"pass --classes {array.size}"
            )
    for part, array in raw.items():
        expected = scheme.shape(workload) if part == "wt" else (workload.Co,)
        if array.shape != expected:
            raise UsageError(
                f"{path}: {names[part]} has shape {array.shape}; expected {expected}; "
                f"does --alpha fit the checkpoint?"
            )
        if not np.isfinite(array).all():
            raise UsageError(f"{path}: {names[part]} holds values that are not finite numbers")


def _named(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
