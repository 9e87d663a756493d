"""Operator instances: what is computed, on which shapes, and nothing about how.

Activations are (N, H, W, C), last axis contiguous; weights are (Kh, Kw, Ci, Co) for a convolution,
(Kh, Kw, C) for a depthwise one, (Ci, Co) for a pointwise one and for the head; bias is one float32
an output channel. `weight_shapes` are those of filter and bias in turns. `pad` is (top, bottom,
left, right) in pixels. A workload's `key` is stable for ever: logs are addressed by it, and `parse`
reads it back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

Pad = tuple[int, int, int, int]
Shapes = tuple[tuple[int, ...], ...]

ACTIVATIONS = ("none", "relu", "relu6")
DTYPES = {"float32": "f32", "float16": "f16"}
ITEM_BYTES = {"float32": 4, "float16": 2}
BIAS_BYTES = 4


class _Window:
    """What moves a window of K x K pixels over an image has in common."""

    __slots__ = ()
    Hi: int
    Wi: int
    K: int
    stride: int
    pad: Pad

    @property
    def Ho(self) -> int:
        return window_count(self.Hi, self.pad[0] + self.pad[1], self.K, self.stride)

    @property
    def Wo(self) -> int:
        return window_count(self.Wi, self.pad[2] + self.pad[3], self.K, self.stride)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv(_Window):
    """Convolution over all input channels, with bias and activation. The stem has Ci = 3.

    y[n,ho,wo,co] = act(bias[co] + sum x[n, ho*stride+kh-top, wo*stride+kw-left, ci]
                                       * wt[kh,kw,ci,co]), x reading 0 outside the image.
    """

    N: int
    Hi: int
    Wi: int
    Ci: int
    Co: int
    K: int = 3
    stride: int
    pad: Pad
    activation: str = "relu6"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check(self, ("N", "Hi", "Wi", "Ci", "Co", "K", "stride"))
        _check_window(self)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.N, self.Hi, self.Wi, self.Ci)

    @property
    def weight_shapes(self) -> Shapes:
        return (self.K, self.K, self.Ci, self.Co), (self.Co,)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.N, self.Ho, self.Wo, self.Co)

    @property
    def macs(self) -> int:
        """Multiply-adds, padding counted as if it were image, as papers count."""
        return self.N * self.Ho * self.Wo * self.Co * self.K * self.K * self.Ci

    @property
    def terms(self) -> int:
        """Products summed into one output."""
        return self.K * self.K * self.Ci

    @property
    def key(self) -> str:
        size = f"n{self.N}.h{self.Hi}.w{self.Wi}.ci{self.Ci}.co{self.Co}.k{self.K}.s{self.stride}"
        return f"conv/{DTYPES[self.dtype]}/{size}.p{_dashed(self.pad)}/{self.activation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Depthwise(_Window):
    """One K×K filter a channel, with bias and activation.

    y[n,ho,wo,c] = act(bias[c] + sum x[n, ho*stride+kh-top, wo*stride+kw-left, c] * wt[kh,kw,c]),
    x reading 0 outside the image.
    """

    N: int
    Hi: int
    Wi: int
    C: int
    K: int = 3
    stride: int
    pad: Pad
    activation: str = "relu6"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check(self, ("N", "Hi", "Wi", "C", "K", "stride"))
        _check_window(self)

    @property
    def Co(self) -> int:
        return self.C

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.N, self.Hi, self.Wi, self.C)

    @property
    def weight_shapes(self) -> Shapes:
        return (self.K, self.K, self.C), (self.C,)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.N, self.Ho, self.Wo, self.C)

    @property
    def macs(self) -> int:
        """Multiply-adds, padding counted as if it were image, as papers count."""
        return self.N * self.Ho * self.Wo * self.C * self.K * self.K

    @property
    def terms(self) -> int:
        """Products summed into one output."""
        return self.K * self.K

    @property
    def key(self) -> str:
        size = f"n{self.N}.h{self.Hi}.w{self.Wi}.c{self.C}.k{self.K}.s{self.stride}"
        return f"depthwise/{DTYPES[self.dtype]}/{size}.p{_dashed(self.pad)}/{self.activation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """1×1 convolution, that is a matrix product over pixels, with bias and activation.

    y[n,h,w,co] = act(bias[co] + sum x[n,h,w,ci] * wt[ci,co]).
    """

    N: int
    H: int
    W: int
    Ci: int
    Co: int
    activation: str = "relu6"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check(self, ("N", "H", "W", "Ci", "Co"))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.N, self.H, self.W, self.Ci)

    @property
    def weight_shapes(self) -> Shapes:
        return (self.Ci, self.Co), (self.Co,)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.N, self.H, self.W, self.Co)

    @property
    def pixels(self) -> int:
        """Of all images: rows of the matrix product."""
        return self.N * self.H * self.W

    @property
    def macs(self) -> int:
        return self.pixels * self.Ci * self.Co

    @property
    def terms(self) -> int:
        """Products summed into one output."""
        return self.Ci

    @property
    def key(self) -> str:
        size = f"n{self.N}.h{self.H}.w{self.W}.ci{self.Ci}.co{self.Co}"
        return f"pointwise/{DTYPES[self.dtype]}/{size}/{self.activation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Global average pooling and the dense layer behind it, with bias and activation.

    y[n,co] = act(bias[co] + sum_ci mean_hw(x[n,h,w,ci]) * wt[ci,co]).
    """

    N: int
    H: int
    W: int
    Ci: int
    Co: int
    activation: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check(self, ("N", "H", "W", "Ci", "Co"))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.N, self.H, self.W, self.Ci)

    @property
    def weight_shapes(self) -> Shapes:
        return (self.Ci, self.Co), (self.Co,)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.N, self.Co)

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense layer; papers do not count the pooling's additions."""
        return self.N * self.Ci * self.Co

    @property
    def terms(self) -> int:
        """Values summed into one output: a channel's pixels, then the channels."""
        return self.H * self.W + self.Ci

    @property
    def key(self) -> str:
        size = f"n{self.N}.h{self.H}.w{self.W}.ci{self.Ci}.co{self.Co}"
        return f"head/{DTYPES[self.dtype]}/{size}/{self.activation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Separable(_Window):
    """A depthwise convolution and the pointwise one behind it, in one; what lies between is no
    tensor. Each has a bias, and the activation follows on both.
    """

    N: int
    Hi: int
    Wi: int
    C: int
    Co: int
    K: int = 3
    stride: int
    pad: Pad
    activation: str = "relu6"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check(self, ("N", "Hi", "Wi", "C", "Co", "K", "stride"))
        _check_window(self)

    @classmethod
    def of(cls, first: Workload, second: Workload) -> Separable | None:
        """The two as one, None where they are no depthwise and the pointwise one behind it."""
        if not isinstance(first, Depthwise) or not isinstance(second, Pointwise):
            return None
        alike = (first.activation, first.dtype) == (second.activation, second.dtype)
        if not alike or first.y_shape != second.x_shape:
            return None
        return cls(
            N=first.N,
            Hi=first.Hi,
            Wi=first.Wi,
            C=first.C,
            Co=second.Co,
            K=first.K,
            stride=first.stride,
            pad=first.pad,
            activation=first.activation,
            dtype=first.dtype,
        )

    @property
    def depthwise(self) -> Depthwise:
        return Depthwise(
            N=self.N,
            Hi=self.Hi,
            Wi=self.Wi,
            C=self.C,
            K=self.K,
            stride=self.stride,
            pad=self.pad,
            activation=self.activation,
            dtype=self.dtype,
        )

    @property
    def pointwise(self) -> Pointwise:
        return Pointwise(
            N=self.N,
            H=self.Ho,
            W=self.Wo,
            Ci=self.C,
            Co=self.Co,
            activation=self.activation,
            dtype=self.dtype,
        )

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.N, self.Hi, self.Wi, self.C)

    @property
    def weight_shapes(self) -> Shapes:
        return *self.depthwise.weight_shapes, *self.pointwise.weight_shapes

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.N, self.Ho, self.Wo, self.Co)

    @property
    def macs(self) -> int:
        return self.depthwise.macs + self.pointwise.macs

    @property
    def terms(self) -> int:
        """Values summed into one output: a channel's taps, then the channels."""
        return self.depthwise.terms + self.pointwise.terms

    @property
    def key(self) -> str:
        size = f"n{self.N}.h{self.Hi}.w{self.Wi}.c{self.C}.co{self.Co}.k{self.K}.s{self.stride}"
        return f"separable/{DTYPES[self.dtype]}/{size}.p{_dashed(self.pad)}/{self.activation}"


Single = Conv | Depthwise | Pointwise | Head  # a layer of a network, with one filter and one bias
Workload = Single | Separable
KINDS: dict[str, type[Workload]] = {
    "conv": Conv,
    "depthwise": Depthwise,
    "pointwise": Pointwise,
    "head": Head,
    "separable": Separable,
}


def flops(workload: Workload) -> int:
    """Floating-point operations: a multiply-add is two."""
    return 2 * workload.macs


def moved_bytes(workload: Workload) -> int:
    """Bytes read and written when every tensor crosses memory exactly once."""
    activations = prod(workload.x_shape) + prod(workload.y_shape)
    return ITEM_BYTES[workload.dtype] * activations + weight_bytes(workload)


def weight_bytes(workload: Workload) -> int:
    """Of filters and biases."""
    filters, biases = workload.weight_shapes[::2], workload.weight_shapes[1::2]
    item = ITEM_BYTES[workload.dtype]
    return item * sum(map(prod, filters)) + BIAS_BYTES * sum(map(prod, biases))


def separables(workloads: Sequence[Workload]) -> tuple[Separable, ...]:
    """Of a network's workloads, in their order, every two that can be one."""
    return tuple(filter(None, (Separable.of(*pair) for pair in pairwise(workloads))))


def parse(key: str) -> Workload:
    """The workload that `key` names. ValueError when it names none."""
    try:
        kind, dtype, size, activation = key.split("/")
        full = next(long for long, short in DTYPES.items() if short == dtype)
        fields: dict[str, int | Pad] = {}
        for part in size.split("."):
            match = re.fullmatch(r"([a-z]+)([\d-]+)", part)
            if match is None:
                raise ValueError(part)
            name, value = match.groups()
            if name == "p":
                top, bottom, left, right = map(int, value.split("-"))
                fields["pad"] = (top, bottom, left, right)
            else:
                fields[_field(kind, name)] = int(value)
        workload = KINDS[kind](**fields, activation=activation, dtype=full)  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, StopIteration):
        workload = None
    if workload is None or workload.key != key:
        raise ValueError(
            f"workload key {key!r} cannot be read; expected "
            f"kind/dtype/sizes/activation as in 'pointwise/f32/n1.h14.w14.ci512.co512/relu6'"
        )
    return workload


def window_count(size: int, padding: int, window: int, stride: int) -> int:
    """How many windows of `window` pixels fit at `stride` into `size` + `padding` pixels."""
    return (size + padding - window) // stride + 1


def _field(kind: str, short: str) -> str:
    """The dataclass field behind a short name of a key."""
    image = ("Hi", "Wi") if kind in ("conv", "depthwise", "separable") else ("H", "W")
    names = {"n": "N", "h": image[0], "w": image[1], "c": "C", "ci": "Ci", "co": "Co"}
    return (names | {"k": "K", "s": "stride"})[short]


def _dashed(pad: Pad) -> str:
    return "-".join(map(str, pad))


def _check(workload: Workload, sizes: tuple[str, ...]) -> None:
    kind = type(workload).__name__
    for name in sizes:
        value = getattr(workload, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{kind}.{name} is {value!r}; expected a whole number from 1 up")
    if workload.activation not in ACTIVATIONS:
        raise ValueError(
            f"{kind}.activation is {workload.activation!r}; "
            f"expected one of {', '.join(ACTIVATIONS)}"
        )
    if workload.dtype not in DTYPES:
        raise ValueError(f"{kind}.dtype is {workload.dtype!r}; expected one of {', '.join(DTYPES)}")


def _check_window(workload: Conv | Depthwise | Separable) -> None:
    kind, K = type(workload).__name__, workload.K
    if len(workload.pad) != 4 or not all(0 <= side < K for side in workload.pad):
        raise ValueError(
            f"{kind}.pad is {workload.pad!r}; expected (top, bottom, left, right), "
            f"each from 0 to K-1 = {K - 1}"
        )
    if workload.Ho < 1 or workload.Wo < 1:
        raise ValueError(
            f"{kind} of {workload.Hi}x{workload.Wi} pixels, pad {workload.pad} gives no output; "
            f"expected an image of at least {K}x{K} pixels with its padding"
        )
