"""Pointwise convolution as a matrix product on tensor cores, NHWC, CUDA.

Maths   y[p,co] = act(bias[co] + sum_ci x[p,ci] * wt[ci,co]), p counting the pixels of all images.
Shapes  x (N*H*W,Ci)  wt (Co/BLOCK_CO,Ci,BLOCK_CO)  bias (Co,), both padded with zeros to whole
        blocks  y (N*H*W,Co)
Types   storage float16, bias and accumulation float32.
Tiling  As tensor_core.py says; the left factor is x, copied in vectors.
Limits  float16; none on sizes: a last tile that is not full reads zeros and leaves out its stores.
Source  own.
"""

from __future__ import annotations

from tvm import te
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from kernels.space import Config, Space
from kernels.te.cuda import tensor_core as engine
from kernels.te.cuda.product import copied, factors, pack, summed
from kernels.te.cuda.tile import on_gpu, share, vectors
from kernels.te.tile import module
from kernels.workload import Pointwise, Workload
from targets.target import Target

__all__ = ["lower", "pack", "space", "supports"]


def supports(workload: Workload, target: Target) -> bool:
    half = isinstance(workload, Pointwise) and workload.dtype == "float16"
    return half and on_gpu(workload, target)


def space(workload: Pointwise, target: Target) -> Space:
    """All tiles that fit a block."""
    return Space(knobs=engine.knobs(workload, target), constraints=engine.constraints(target))


def lower(workload: Pointwise, config: Config, target: Target) -> IRModule:
    """The scheduled function main(x, wt, bias, y)."""
    x = te.placeholder((workload.pixels, workload.Ci), workload.dtype, "x")
    wt, bias = factors(workload, config)
    y = summed(copied(x, workload, config), wt, bias, workload, engine.OUT)
    schedule = Schedule(module(x, wt, bias, y))

    def stage(left: SBlockRV, at: LoopRV, threads: tuple[int, int]) -> None:
        share(schedule, left, at, threads, vectors(workload.dtype, workload.Ci)[-1])

    engine.schedule_product(schedule, workload, config, stage)
    return schedule.mod
