"""Convolution over few input channels, the network's stem, NHWC, CUDA.

Maths   y[n,ho,wo,co] = act(bias[co] + sum_{kh,kw,ci} x[n, ho*stride+kh-top, wo*stride+kw-left, ci]
                                                      * wt[kh,kw,ci,co])
        x outside the image reads as 0.
Shapes  x (N*Hi*Wi,Ci)  wt (K,K,Ci,Co)  bias (Co,)  y (N,Ho,Wo,Co)
Types   storage float32 or float16, bias and accumulation float32.
Tiling  A thread computes BLOCK_WO columns of VECTOR output channels, from the window under them,
        which it keeps in registers, and one vector of weights a tap. Neighbouring threads have
        neighbouring output channels, so that they read the same pixels and store whole lines.
Limits  at most 64 taps (K*K*Ci), because they are unrolled.
Source  own.
"""

from __future__ import annotations

from typing import Any

from tvm import te
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, Space, blocks
from kernels.te.cuda.tile import (
    finished,
    in_registers,
    multiplied,
    on_gpu,
    threads,
    unroll_below,
    vectorize,
    vectors,
)
from kernels.te.tile import bordered, module, window_span
from kernels.workload import Conv, Workload
from targets.target import Target

MOST_TAPS = 64


def supports(workload: Workload, target: Target) -> bool:
    return isinstance(workload, Conv) and workload.terms <= MOST_TAPS and on_gpu(workload, target)


def space(workload: Conv, target: Target) -> Space:
    """Tiles whose window and sums fit registers."""
    widths = vectors(workload.dtype, workload.Co)
    columns = tuple(columns for columns in (1, 2, 4, 8) if columns <= workload.Wo)
    work = workload.N * workload.Ho * workload.Wo * workload.Co // widths[-1]

    def values(config: Config) -> int:
        window = workload.K * window_span(workload, (1, int(config["BLOCK_WO"])))[1] * workload.Ci
        return window + int(config["BLOCK_WO"]) * int(config["VECTOR"])

    return Space(
        knobs=(
            Knob("BLOCK_WO", columns, columns[min(1, len(columns) - 1)]),
            Knob("VECTOR", widths[-3:], widths[-1]),
            threads((64, 128, 256), work, target),
        ),
        constraints=(Constraint("window and sums fit registers", lambda c: values(c) <= 160),),
    )


def lower(workload: Conv, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    width = int(config["VECTOR"])
    schedule = Schedule(_formula(workload, config))
    staged, acc, y = (schedule.get_sblock(name) for name in ("staged", "acc", "y"))
    in_registers(schedule, staged, acc)
    stored = schedule.cache_write(y, 0, "local")
    wt = schedule.cache_read(acc, 1, "local")

    n, ho, wo, co, w, c, kh, kw, ci = schedule.get_loops(acc)
    schedule.reorder(kh, kw, ci, w, c)
    for consumer in (y, stored):
        schedule.reverse_compute_at(consumer, co)
    bias = schedule.cache_read(y, 1, "local")
    for producer, loop in ((wt, ci), (staged, co), (bias, co)):
        schedule.compute_at(producer, loop)
    block, thread = schedule.split(schedule.fuse(n, ho, wo, co), [None, int(config["THREADS"])])
    schedule.bind(block, "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    for copy, most in ((wt, width), (stored, width), (bias, 4)):
        vectorize(schedule, copy, min(width, most))
    schedule.decompose_reduction(acc, kh)
    unroll_below(schedule, thread)
    return schedule.mod


def pack(workload: Conv, config: Config, weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """As they are."""
    return weights


def _formula(workload: Conv, config: Config) -> IRModule:
    """The unscheduled function, its sum already written thread by thread."""
    N, Ci, Co, K, stride = workload.N, workload.Ci, workload.Co, workload.K, workload.stride
    Ho, Wo, dtype = workload.Ho, workload.Wo, workload.dtype
    BW, V = int(config["BLOCK_WO"]), int(config["VECTOR"])
    TW = blocks(Wo, BW)
    x = te.placeholder((N * workload.Hi * workload.Wi, Ci), dtype, "x")
    wt = te.placeholder((K, K, Ci, Co), dtype, "wt")
    bias = te.placeholder((Co,), "float32", "bias")
    kh, kw, ci = (
        te.reduce_axis((0, size), name) for size, name in ((K, "kh"), (K, "kw"), (Ci, "ci"))
    )

    staged = bordered(x, workload, (Ho, TW * BW), Ci)

    def term(n: Any, ho: Any, wo: Any, co: Any, w: Any, c: Any) -> Any:
        pixel = staged[n, ho * stride + kh, (wo * BW + w) * stride + kw, ci]
        return te.sum(multiplied(pixel, wt[kh, kw, ci, co * V + c]), [kh, kw, ci])

    acc = te.compute((N, Ho, TW, Co // V, BW, V), term, name="acc")
    y = te.compute(
        workload.y_shape,
        lambda n, h, w, c: finished(acc[n, h, w // BW, c // V, w % BW, c % V], bias[c], workload),
        name="y",
    )
    return module(x, wt, bias, y)
