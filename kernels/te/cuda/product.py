"""The formula of a matrix product in whole blocks, whatever its left factor is made of.

Rows are the pixels of all images, the terms of a sum input channels, columns output channels. The
knobs BLOCK_P, BLOCK_CI and BLOCK_CO say how many of each a block takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import te, tirx

from kernels.reference import Array
from kernels.space import Config, blocks
from kernels.te.cuda.tile import finished, multiplied
from kernels.te.tile import pad_last
from kernels.workload import Pointwise


def steps(config: Config) -> tuple[int, int, int]:
    """Rows, terms and columns of a block."""
    rows, terms, columns = (int(config[name]) for name in ("BLOCK_P", "BLOCK_CI", "BLOCK_CO"))
    return rows, terms, columns


def extents(workload: Pointwise, config: Config) -> tuple[int, int, int]:
    """Rows, terms and columns of the product, in whole blocks."""
    sizes = (workload.pixels, workload.Ci, workload.Co)
    rows, terms, columns = (
        blocks(size, step) * step for size, step in zip(sizes, steps(config), strict=True)
    )
    return rows, terms, columns


def copied(x: Any, workload: Pointwise, config: Config) -> Any:
    """The stage `left` that holds the pixels `x` (P,Ci), and zeros to whole blocks."""
    P, Ci = workload.pixels, workload.Ci

    def pixel(p: Any, c: Any) -> Any:
        inside = tirx.all(p < P, c < Ci)
        return tirx.if_then_else(inside, x[p, c], tirx.const(0, workload.dtype))

    return te.compute(extents(workload, config)[:2], pixel, name="left")


def factors(workload: Pointwise, config: Config) -> tuple[Any, Any]:
    """Placeholders of weights and bias as `pack` makes them."""
    _, terms, columns = extents(workload, config)
    block = int(config["BLOCK_CO"])
    wt = te.placeholder((columns // block, terms, block), workload.dtype, "wt")
    return wt, te.placeholder((columns,), "float32", "bias")


def summed(left: Any, wt: Any, bias: Any, workload: Pointwise, through: str | None = None) -> Any:
    """The stage `y` (P,Co), from the stage `left` by way of `acc`.

    through  a stage that copies the sums before they are finished, where one is wanted
    """
    rows, terms = map(int, left.shape)
    columns, block = int(bias.shape[0]), int(wt.shape[2])
    ci = te.reduce_axis((0, terms), "ci")
    sums = te.compute(
        (rows, columns),
        lambda p, c: te.sum(multiplied(left[p, ci], wt[c // block, ci, c % block]), ci),
        name="acc",
    )
    if through:
        acc = sums
        sums = te.compute((rows, columns), lambda p, c: acc[p, c], name=through)
    return te.compute(
        (workload.pixels, workload.Co),
        lambda p, c: finished(sums[p, c], bias[c], workload),
        name="y",
    )


def pack(workload: Pointwise, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """wt (Ci,Co) -> (Co/BLOCK_CO,Ci,BLOCK_CO), and bias, padded with zeros to whole blocks."""
    wt, bias = weights
    _, terms, _ = extents(workload, config)
    columns = int(config["BLOCK_CO"])
    deep = np.pad(pad_last(wt, columns), ((0, terms - workload.Ci), (0, 0)))
    packed = deep.reshape(terms, -1, columns).transpose(1, 0, 2)
    return np.ascontiguousarray(packed), pad_last(bias, columns)
