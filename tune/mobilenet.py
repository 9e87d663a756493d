"""The layers of MobileNet-V1 for any width, resolution, batch and variant.

Source  Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
        Applications", 2017, table 1; its last depthwise layer is printed with stride 2 and has 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from kernels.workload import DTYPES, Conv, Depthwise, Head, Pad, Pointwise, Single

STEM_CHANNELS = 32
# Of each block: output channels at width 1, stride of its depthwise convolution.
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
SHALLOW = (*BLOCKS[:6], *BLOCKS[11:])  # the paper's control without the five 14x14x512 blocks

EPSILON = {"tf": 1e-3, "torch": 1e-5}
BODIES = ("separable", "full", "shallow")
LEAST_RESOLUTION = 32  # one pixel after five strides of 2
MOST_ALPHA = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A workload under its name in the network, such as `block1.depthwise`."""

    name: str
    workload: Single


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileNet:
    """One network of the family.

    alpha       width multiplier; a layer of c channels gets max(int(c * alpha), 8)
    resolution  height and width of the image in pixels
    variant     `tf`: SAME padding, which at stride 2 on an even image pads only below and to the
                right, batch norm epsilon 1e-3; `torch`: one pixel on every side, epsilon 1e-5;
                both with ReLU6
    body        `separable`, or one of the paper's controls: `full` replaces each block by a full
                convolution, `shallow` leaves out the five blocks of 14x14x512

    ValueError when a field is out of its range.
    """

    alpha: float = 1.0
    resolution: int = 224
    batch: int = 1
    classes: int = 1001
    variant: str = "tf"
    dtype: str = "float32"
    body: str = "separable"

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, int | float) or not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha!r}; expected a number above 0; pass 0.5 or 1.0")
        if self.alpha > MOST_ALPHA:
            raise ValueError(
                f"alpha is {self.alpha!r}; expected at most {MOST_ALPHA}; pass 0.5 or 1.0"
            )
        for name, least in (("resolution", LEAST_RESOLUTION), ("batch", 1), ("classes", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} is {value!r}; expected a whole number; pass {least} or more"
                )
        known: tuple[str, ...]
        for name, known in (
            ("variant", tuple(EPSILON)),
            ("dtype", tuple(DTYPES)),
            ("body", BODIES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}; "
                    f"pass {known[0]}"
                )

    @property
    def name(self) -> str:
        """Such as mobilenet_v1 0.5/160."""
        return f"mobilenet_v1 {self.alpha:g}/{self.resolution}"

    @property
    def title(self) -> str:
        """All that tells it from others, in a line."""
        size = f"{self.resolution}x{self.resolution}"
        title = f"mobilenet_v1 alpha={self.alpha} {size} batch={self.batch} {self.dtype}"
        return f"{title} {self.variant}" + f" {self.body}" * (self.body != "separable")

    @property
    def epsilon(self) -> float:
        """Of the batch norms."""
        return EPSILON[self.variant]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N,H,W,3)."""
        return (self.batch, self.resolution, self.resolution, 3)

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Of each block: output channels at width 1, stride of its 3x3 convolution."""
        return SHALLOW if self.body == "shallow" else BLOCKS

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers from the image to the logits."""
        size, channels = self.resolution, self._width(STEM_CHANNELS)
        stem = self._conv(size, 3, channels, 2)
        layers, size = [Layer(name="stem", workload=stem)], stem.Ho
        for number, (width, stride) in enumerate(self.blocks, start=1):
            outputs, block = self._width(width), f"block{number}"
            if self.body == "full":
                conv = self._conv(size, channels, outputs, stride)
                layers.append(Layer(name=f"{block}.conv", workload=conv))
                size = conv.Ho
            else:
                depthwise = self._depthwise(size, channels, stride)
                size = depthwise.Ho
                pointwise = self._pointwise(size, channels, outputs)
                layers.append(Layer(name=f"{block}.depthwise", workload=depthwise))
                layers.append(Layer(name=f"{block}.pointwise", workload=pointwise))
            channels = outputs
        head = Head(N=self.batch, H=size, W=size, Ci=channels, Co=self.classes, dtype=self.dtype)
        return (*layers, Layer(name="head", workload=head))

    @property
    def macs(self) -> int:
        """Multiply-adds of a whole batch, as the paper counts: padding counts, pooling does not."""
        return sum(layer.workload.macs for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Trainable values: filters, scale and shift of each batch norm, the dense layer's bias."""
        total = 0
        for layer in self.layers:
            offsets = 1 if isinstance(layer.workload, Head) else 2
            total += prod(layer.workload.weight_shapes[0]) + offsets * layer.workload.Co
        return total

    def _width(self, channels: int) -> int:
        return max(int(channels * self.alpha), 8)

    def _pad(self, size: int, stride: int) -> Pad:
        """(top, bottom, left, right) of a 3x3 window on a square image of `size`."""
        if self.variant == "torch":
            return (1, 1, 1, 1)
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + 3 - size, 0)
        before = total // 2
        return (before, total - before, before, total - before)

    def _conv(self, size: int, inputs: int, outputs: int, stride: int) -> Conv:
        return Conv(
            N=self.batch,
            Hi=size,
            Wi=size,
            Ci=inputs,
            Co=outputs,
            stride=stride,
            pad=self._pad(size, stride),
            dtype=self.dtype,
        )

    def _depthwise(self, size: int, channels: int, stride: int) -> Depthwise:
        return Depthwise(
            N=self.batch,
            Hi=size,
            Wi=size,
            C=channels,
            stride=stride,
            pad=self._pad(size, stride),
            dtype=self.dtype,
        )

    def _pointwise(self, size: int, inputs: int, outputs: int) -> Pointwise:
        return Pointwise(N=self.batch, H=size, W=size, Ci=inputs, Co=outputs, dtype=self.dtype)
