"""How far from the reference a right answer may lie, by dtype and number of terms summed.

Candidates are checked on inputs of unit variance and weights of variance 1/terms, so that a sum
has unit variance whatever its length. A float32 sum rounds `terms` products and `terms` additions,
each by at most u = 2**-24 of a value that stays below 4 (four deviations of the running sum).
Roundings are independent, so their sum spreads like u * 4 * sqrt(2 * terms); six deviations of that
bound every output of every layer: 24 * u * sqrt(2 * terms). A tap left out or read from the wrong
pixel moves an output by about 1/sqrt(terms), which for 9 to 1024 terms is 1,000 to 100,000 times
more; the tests plant one.

Storing a float16 result rounds a value below 8 by at most h = 2**-11 of it. A kernel may also sum
in float16, HALF_TERMS products at a time, and add up these sums in float16. Adding to a sum s
rounds it by up to h * s, uniformly, that is with a variance of 0.18 * (h * s)**2. A sum that ends
at 7, five deviations of output and bias, has a third of 49 for a mean square on its way: n
additions give 1.7 * h * sqrt(n), three deviations 5.1. Sums of b of the n terms have a variance of
b / n in the mean, half of it on their way, so that the n roundings within them give
0.3 * h * sqrt(b), six deviations 1.8.
"""

from __future__ import annotations

import math

UNIT = 2.0**-24
HALF_UNIT = 2.0**-11
HALF_TERMS = 64  # products that a float16 kernel sums before it starts another sum


def tolerance(dtype: str, terms: int) -> float:
    """Largest |output - reference| of a right kernel on the inputs described above."""
    exact = 24 * UNIT * math.sqrt(2 * terms)
    if dtype == "float32":
        return exact
    if terms <= HALF_TERMS:
        return exact + HALF_UNIT * (8 + 5.1 * math.sqrt(terms))
    added = 5.1 * math.sqrt(terms / HALF_TERMS) + 1.8 * math.sqrt(HALF_TERMS)
    return exact + HALF_UNIT * (8 + added)


def network_tolerance(dtype: str, terms: list[int], scale: float) -> float:
    """Largest |logit - reference| of a right network whose largest logit is `scale`.

    terms  what each layer sums

    A layer passes on the relative error of the layer before it, about unchanged since folded batch
    norm keeps activations of order one, and adds its own; independent, they add as squares.
    """
    return scale * math.sqrt(sum(tolerance(dtype, count) ** 2 for count in terms))
