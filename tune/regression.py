"""Paired times in, a verdict out: has something become slower, and what would have been noticed?

A pair is a kernel's time and, taken at once before it, the machine's own peak. Their product is the
operations that the machine could have done meanwhile: what slows both alike, such as company on a
shared machine or another clock, is not in it. A ratio is that product over the recorded one; it is
1 when nothing has changed, and logarithms of ratios are what is averaged. A kernel that waits for
memory has the memory's own rate beside it, too: nothing can be said of one that takes no longer
than its bytes do at that rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LEAST, MOST = 6, 24  # pairs, before and at which there is a verdict
Z = 3.0  # standard errors that a verdict before the last pair is sure of
FOUND_Z = 1.645  # standard errors by which a slowdown must exceed the tolerance to be found in 95%
MAD_TO_SIGMA = 1.4826  # of a normal distribution: its standard deviation over the median deviation
MEDIAN_ERROR = 1.2533  # sqrt(pi / 2): the standard error of a median over that of a mean
LEAST_SIGMA = 0.01  # few samples may agree by chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What pairs say of one kernel.

    ratio       how many times longer than recorded, the machine's own speed taken out
    error       standard error of its logarithm
    slower      by more than the tolerance, and not by chance
    sure        no further pair would change that
    detectable  the smallest slowdown that is found in 95 of 100 such runs
    """

    ratio: float
    error: float
    slower: bool
    sure: bool
    detectable: float
    pairs: int


def judge(ratios: Sequence[float], tolerance: float) -> Verdict:
    """The verdict on the ratios of one kernel's pairs.

    tolerance  slowdown that is accepted, e.g. 0.1
    Slower is what exceeds the tolerance as measured, and 1 by more than chance: of slowdowns that
    equal the tolerance, half are found.
    """
    logs = [math.log(ratio) for ratio in ratios]
    middle = median(logs)
    spread = MAD_TO_SIGMA * median(abs(value - middle) for value in logs)
    error = MEDIAN_ERROR * max(spread, LEAST_SIGMA) / math.sqrt(len(logs))
    limit = math.log1p(tolerance)
    sure = len(logs) >= LEAST and abs(middle - limit) > Z * error
    return Verdict(
        ratio=math.exp(middle),
        error=error,
        slower=middle > limit and middle > Z * error,
        sure=sure or len(logs) >= MOST,
        detectable=math.exp(limit + FOUND_Z * error),
        pairs=len(logs),
    )
