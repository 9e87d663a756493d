"""Photos become what the network was trained on: the real weights know the two of them."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tune import images, weights
from tune.eager import MobileNetV1, from_weights
from tune.errors import UsageError
from tune.mobilenet import MobileNet

torch.set_num_threads(1)
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
IMAGENET_TABBY, IMAGENET_TIGER_CAT, IMAGENET_EGYPTIAN_CAT = 282, 283, 286  # 0 is background
IMAGENET_ESPRESSO = 968


@cache
def network() -> MobileNetV1:
    model = MobileNet()
    path = weights.bundled(model)
    assert path is not None
    return from_weights(weights.read(path, model), model)


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("coffee.png", {IMAGENET_ESPRESSO: 0.991}),
        (
            "chelsea.png",
            {IMAGENET_TABBY: 0.497, IMAGENET_TIGER_CAT: 0.276, IMAGENET_EGYPTIAN_CAT: 0.205},
        ),
    ],
)
def test_real_weights_know_the_photos(photo: str, expected: dict[int, float]) -> None:
    """0.002: what rounding most of the checkpoint's filters to float16 may cost."""
    x = torch.from_numpy(images.read(PHOTOS / photo, 224)).permute(0, 3, 1, 2)
    with torch.no_grad():
        likely = network()(x).softmax(1)[0].sort(descending=True)
    best = dict(zip(likely.indices.tolist(), likely.values.tolist(), strict=True))
    assert list(best)[: len(expected)] == list(expected)
    assert {index: best[index] for index in expected} == pytest.approx(expected, abs=0.002)


def test_labels_stand_at_the_indices_of_imagenet() -> None:
    labels = images.labels()
    assert len(labels) == 1001
    assert labels[0] == "background"
    assert all(label.strip() == label != "" for label in labels)
    assert labels[IMAGENET_ESPRESSO] == "espresso"
    assert labels[IMAGENET_TABBY] == "tabby cat"
    assert labels[1000] == "toilet paper"


@pytest.mark.parametrize("resolution", [32, 97, 224])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_any_photo_becomes_one_rgb_image(tmp_path: Path, mode: str, resolution: int) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), (255, 255, 255)).convert(mode).save(path)
    x = images.read(path, resolution)
    assert x.shape == (1, resolution, resolution, 3)
    assert x.dtype == np.float32
    assert (x == 1).all()


def test_channels_are_red_green_blue_from_minus_1_to_1(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64), (0, 51, 255)).save(path)
    assert images.read(path, 32)[0, 5, 7] == pytest.approx([-1, -0.6, 1])


def test_the_central_seven_eighths_are_looked_at(tmp_path: Path) -> None:
    """Of 160x80 pixels the 70x70 in the middle: columns 45 to 114, rows 5 to 74."""
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[5:75, 45:115] = 255
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    assert (images.read(path, 70) == 1).all()
    pixels[5:75, 45] = 0
    Image.fromarray(pixels).save(path)
    x = images.read(path, 70)
    assert (x[0, :, 0] == -1).all()
    assert (x[0, :, 1:] == 1).all()


def test_a_single_pixel_is_a_photo(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (1, 1), (255, 0, 0)).save(path)
    assert images.read(path, 32)[0, 31, 31].tolist() == [1, -1, -1]


def test_no_photo(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    with pytest.raises(UsageError) as error:
        images.read(path, 32)
    assert str(error.value) == f"no photo at {path}; expected a PNG or JPEG file; check the path"


def test_damaged_photos(tmp_path: Path) -> None:
    """Whatever is cut off or overwritten: one line, or the image; never another exception."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    damaged = [whole[:length] for length in range(0, len(whole), 40)]
    for _ in range(600):
        photo = bytearray(whole)
        for place in rng.integers(0, 120, 3):
            photo[place] = rng.integers(0, 256)
        damaged.append(bytes(photo))
    path, messages = tmp_path / "photo.png", []
    for photo in damaged:
        path.write_bytes(photo)
        try:
            images.read(path, 32)
        except UsageError as error:
            messages.append(str(error))
    assert len(messages) > len(damaged) // 2
    assert set(messages) == {
        f"{path} is no image that can be read; expected PNG or JPEG; convert or fetch it again"
    }


def test_a_folder_is_no_photo(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no image that can be read; "):
        images.read(tmp_path, 32)


def test_a_decompression_bomb_is_no_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UsageError, match=r"is too large: .*; expected a photo; scale it down"):
        images.read(path, 32)
