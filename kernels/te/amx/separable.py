"""Depthwise convolution and the pointwise one behind it in one kernel, NHWC, x86 with AMX.

Maths   z[n,ho,wo,c] = act(dw_bias[c] + sum_{kh,kw} x[n, ho*stride+kh-top, wo*stride+kw-left, c]
                                                    * dw_wt[kh,kw,c])
        y[n,ho,wo,co] = act(bias[co] + sum_c z[n,ho,wo,c] * wt[c,co])
        x outside the image reads as 0.
Shapes  x (N,Hi,Wi,C)  dw_wt (K*K,C)  dw_bias (C,)  y (N*Ho*Wo,Co)
        wt, bias as `kernels.te.amx.product` packs them
Types   float32.
Tiling  That of `kernels.te.avx.separable`, whose product is the one of `kernels.te.amx.product`;
        z is stored in pieces.
Limits  Those of `kernels.te.amx.product`, and K at most 3.
Source  own.
"""

from __future__ import annotations

from functools import partial

from tvm.ir import IRModule

from kernels.reference import Array
from kernels.space import Config, Space
from kernels.te.amx import pieces, product
from kernels.te.avx import separable
from kernels.te.llvm import depthwise
from kernels.te.llvm.code import isa_of
from kernels.workload import Separable, Workload
from targets.target import Target


def supports(workload: Workload, target: Target) -> bool:
    return (
        isinstance(workload, Separable)
        and product.supports(workload.pointwise, target)
        and depthwise.supports(workload.depthwise, target)
    )


def space(workload: Separable, target: Target) -> Space:
    """Tiles of both parts."""
    factor = workload.pointwise
    pixel = _laid_out(workload, target).pixel
    return separable.in_tasks(workload, {0: factor}, target, *product.knobs(factor), pixel=pixel)


def lower(workload: Separable, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, dw_wt, dw_bias, wt, bias, y)."""
    codes: dict[str, str] = {}
    multiply = partial(product.calls, workload.pointwise, config, target, codes)
    shapes = product.shapes(workload.pointwise, config)
    z = _laid_out(workload, target)
    return separable.scheduled(workload, config, target, codes, multiply, shapes, z=z)


def pack(workload: Separable, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """dw_wt (K,K,C) -> (K*K,C); wt (C,Co), bias (Co,) as `kernels.te.amx.product` reads them."""
    dw_wt, dw_bias, wt, bias = weights
    return (
        *depthwise.pack(workload.depthwise, config, (dw_wt, dw_bias)),
        *product.packed(workload.pointwise, config, wt, bias),
    )


def flops(workload: Separable) -> int:
    """Operations of the depthwise part, and of the vector units in the time of the products."""
    return 2 * workload.depthwise.macs + product.operations(workload.pointwise)


def _laid_out(workload: Separable, target: Target) -> depthwise.Outputs:
    """How z lies in its buffer."""
    return pieces.pixels(workload.C, isa_of(target).lanes(workload.dtype))
