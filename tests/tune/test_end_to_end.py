"""From the checkpoint to an answer: the library knows the photos that PyTorch knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.tolerance import network_tolerance
from targets import machines
from tune import images, pipeline, weights
from tune.eager import from_weights
from tune.mobilenet import MobileNet
from tune.runtime import load

pytestmark = pytest.mark.slow
torch.set_num_threads(1)
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
MODEL = MobileNet()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNet-V1 1.0/224 with the ImageNet weights, every layer at its default."""
    folder = tmp_path_factory.mktemp("artifact")
    pipeline.build(
        MODEL,
        machines("x86").host(),
        pipeline.Log(path=folder / "none.jsonl"),
        threads=2,
        weights=None,
        seed=0,
        output=folder / "mobilenet_v1.so",
    )
    return folder / "mobilenet_v1.so"


def test_photos_are_known(library: Path) -> None:
    photos = [PHOTOS / "coffee.png", PHOTOS / "chelsea.png"]
    (coffee, drinks), (chelsea, cats) = pipeline.classify(library, photos)
    assert [coffee, chelsea] == photos
    assert len(drinks) == len(cats) == 5
    assert drinks[0][1] == "espresso"
    assert drinks[0][0] >= 0.98
    assert [label for _, label in cats[:2]] == ["tabby cat", "a cat having a striped coat"]
    assert cats[0][0] == pytest.approx(0.497, abs=0.005)


@pytest.mark.parametrize("photo", ["coffee.png", "chelsea.png"])
def test_logits_are_those_of_eager(library: Path, photo: str) -> None:
    x = images.read(PHOTOS / photo, MODEL.resolution)
    checkpoint = weights.bundled(MODEL)
    assert checkpoint is not None
    with torch.no_grad():
        eager = from_weights(weights.read(checkpoint, MODEL), MODEL)
        expected = eager(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    terms = [layer.workload.terms for layer in MODEL.layers]
    allowed = network_tolerance(MODEL.dtype, terms, scale=float(np.max(np.abs(expected))))
    np.testing.assert_allclose(load(library)(x), expected, rtol=0, atol=allowed)
