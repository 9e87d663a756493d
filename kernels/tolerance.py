"""How far from the reference a right answer may lie, by dtype and number of terms summed.

Candidates are checked on inputs of unit variance and weights of variance 1/terms, so that a sum
has unit variance whatever its length. A float32 sum rounds `terms` products and `terms` additions,
each by at most u = 2**-24 of a value that stays below 4 (four deviations of the running sum).
Roundings are independent, so their sum spreads like u * 4 * sqrt(2 * terms); six deviations of that
bound every output of every layer: 24 * u * sqrt(2 * terms). A tap left out or read from the wrong
pixel moves an output by about 1/sqrt(terms), which for 9 to 1024 terms is 1,000 to 100,000 times
more; the tests plant one. Storing a float16 result rounds once more, by 2**-11 of a value below 8.
"""

from __future__ import annotations

import math

UNIT = 2.0**-24
STORED = {"float32": 0.0, "float16": 8 * 2.0**-11}


def tolerance(dtype: str, terms: int) -> float:
    """Largest |output - reference| of a right kernel on the inputs described above."""
    return 24 * UNIT * math.sqrt(2 * terms) + STORED[dtype]


def network_tolerance(dtype: str, terms: list[int], scale: float) -> float:
    """Largest |logit - reference| of a right network whose largest logit is `scale`.

    terms  what each layer sums

    A layer passes on the relative error of the layer before it, about unchanged since folded batch
    norm keeps activations of order one, and adds its own; independent, they add as squares.
    """
    return scale * math.sqrt(sum(tolerance(dtype, count) ** 2 for count in terms))
