"""The gate before every time: only the right output passes, and the message says where it fails."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.reference import reference
from kernels.tolerance import tolerance
from kernels.workload import Pointwise
from tune.verify import IMAGES, case, difference, few

WORKLOAD = Pointwise(N=1, H=3, W=4, Ci=16, Co=8, activation="none")
ALLOWED = tolerance("float32", 16)


def off_by(value: float) -> np.ndarray:
    """The reference's output, as a kernel may shape it, one value moved."""
    y = case(WORKLOAD)[-1].reshape(12, 8).copy()
    y[5, 7] += value
    return y


def test_case_is_fixed_and_its_own_answer() -> None:
    x, weights, y = case(WORKLOAD)
    case.cache_clear()
    few.cache_clear()
    again_x, again_weights, again_y = case(WORKLOAD)
    for one, other in zip((x, *weights, y), (again_x, *again_weights, again_y), strict=True):
        assert one is not other
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(reference(WORKLOAD, x, weights), y)
    assert difference(WORKLOAD, y) is None


@pytest.mark.parametrize("share", [0.9, -0.9])
def test_what_is_within_the_tolerance_passes(share: float) -> None:
    assert difference(WORKLOAD, off_by(share * ALLOWED)) is None


@pytest.mark.parametrize("value", [1.1 * ALLOWED, -1.1 * ALLOWED, 1e9, np.inf, -np.inf, np.nan])
def test_one_value_beyond_it_fails(value: float) -> None:
    y = off_by(value)
    expected = case(WORKLOAD)[-1][0, 1, 1, 7]
    assert difference(WORKLOAD, y) == (
        f"output (0, 1, 1, 7) is {y[5, 7]:.6g}; expected {expected:.6g} within {ALLOWED:.2g}"
    )


def test_value_that_was_not_written_is_told_before_the_wrong_ones() -> None:
    y = off_by(1e9)
    y[0, 0] = np.nan
    assert str(difference(WORKLOAD, y)).startswith("output (0, 0, 0, 0) is nan; expected ")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_of_a_batch_are_looked_at_each(dtype: str) -> None:
    many = Pointwise(N=2 * IMAGES + 1, H=1, W=3, Ci=16, Co=7, dtype=dtype)  # 42 bytes an image
    y = case(many)[-1].copy()
    assert difference(many, y) is None
    right = y[:IMAGES].copy()
    for image in (0, IMAGES, 2 * IMAGES):
        bad = y.copy()
        bad[image, 0, 2, 6] = np.nan
        for known in (None, right):
            assert str(difference(many, bad, known)).startswith(f"output ({image}, 0, 2, 6) is nan")
    assert difference(many, y, right) is None
    assert difference(many, y, right + 1) is None  # not equal, but right all the same
