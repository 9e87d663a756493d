"""Photos in, network input out."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.errors import UsageError

LABELS = Path(__file__).parent / "data" / "imagenet_labels.txt"
CROP = 0.875  # of the shorter side: the square that is looked at, around the centre
# What Pillow raises on a file that is no image, is cut short or is damaged.
UNREADABLE = (OSError, SyntaxError, ValueError, struct.error)


def read(path: Path, resolution: int, dtype: str = "float32") -> NDArray[Any]:
    """The photo at `path` as (1,resolution,resolution,3), RGB.

    dtype  uint8, or one of floats for value / 127.5 - 1

    The central square is cut out and resized with bilinear interpolation.
    UsageError when there is no file, or no image in it that can be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as photo:
            rgb = photo.convert("RGB")
    except FileNotFoundError:
        raise UsageError(
            f"no photo at {path}; expected a PNG or JPEG file; check the path"
        ) from None
    except UNREADABLE:
        raise UsageError(
            f"{path} is no image that can be read; expected PNG or JPEG; convert or fetch it again"
        ) from None
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path} is too large: {error}; expected a photo; scale it down") from None
    side = max(int(min(rgb.size) * CROP), 1)
    left, top = ((size - side) // 2 for size in rgb.size)
    square = rgb.crop((left, top, left + side, top + side))
    resized = square.resize((resolution, resolution), Image.Resampling.BILINEAR)
    if dtype == "uint8":
        return np.array(resized)[None]
    return (np.asarray(resized, np.float32) / np.float32(127.5) - 1).astype(dtype)[None]


@cache
def labels() -> tuple[str, ...]:
    """The 1001 ImageNet classes in order, `background` first."""
    return tuple(LABELS.read_text(encoding="utf-8").splitlines())
