"""What kernels scheduled in TVM ask for, counted by hand in a module's script."""

from __future__ import annotations

import pytest

from tune.tir import scheduled

# As TVM 0.27 prints it, shortened: two kernels, the second with a product on tensor cores.
SCRIPT = """\
@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def main_kernel(bias_ptr: T.handle("float32", "global"), x_ptr: T.handle("float16", "global"), y_ptr: T.handle("float16", "global")):
        T.func_attr({"calling_conv": 2, "tirx.kernel_launch_params": ["blockIdx.x", "threadIdx.x"]})
        y = T.decl_buffer((4096,), "float16", data=y_ptr)
        bias = T.decl_buffer((128,), data=bias_ptr)
        x = T.decl_buffer((512,), "float16x8", data=x_ptr)
        with T.launch_thread("blockIdx.x", 6) as blockIdx_x:
            x_local = T.alloc_local((72,), "float16")
            with T.launch_thread("threadIdx.x", 64) as threadIdx_x:
                for ax0 in T.unroll(3):
                    for ax1 in range(1, 3):
                        x_local[ax0 * 24:ax0 * 24 + 8] = T.if_then_else(ax0 < 2, x[blockIdx_x * 4 + (ax0 & 1)], T.Broadcast(T.float16(0.0), 8))
                    y[(blockIdx_x >> 3) * 7 + ax0 * 8:(blockIdx_x >> 3) * 7 + ax0 * 8 + 4] = x_local[T.Ramp(ax0, 1, 4)] + T.Broadcast(bias[x_local[0]], 4)
                if blockIdx_x < 2:
                    y[0:2] = T.Broadcast(T.float16(0.0), 2)

    @T.prim_func(s_tir=True)
    def main_kernel_1(wt_ptr: T.handle("float16", "global"), y_ptr: T.handle("float16", "global")):
        y = T.decl_buffer((4096,), "float16", data=y_ptr)
        wt = T.decl_buffer((4096,), "float16", data=wt_ptr)
        with T.launch_thread("blockIdx.y", 2) as blockIdx_y:
            blockIdx_x = T.launch_thread("blockIdx.x", 5)
            buf_dyn_shmem = T.alloc_buffer((5120,), "uint8", scope="shared.dyn")
            wt_shared_dyn = T.decl_buffer((1280,), "float16", data=buf_dyn_shmem.data, scope="shared.dyn")
            threadIdx_y = T.launch_thread("threadIdx.y", 4)
            threadIdx_x = T.launch_thread("threadIdx.x", 32)
            for ci in T.serial(16, annotations={"software_pipeline": 1}):
                wt_shared_dyn[threadIdx_x * 8:threadIdx_x * 8 + 8] = wt[T.Ramp(ci * 256 + (threadIdx_x & 3) * 8, 1, 8)]
                for k in T.unroll(2):
                    T.tvm_mma_sync(acc.data, 0, a.data, 0, b.data, 0, acc.data, 0)
            y[threadIdx_x] = wt_shared_dyn[0]
"""  # noqa: E501


def test_accesses_times_loops_times_threads() -> None:
    first, _ = scheduled(SCRIPT)
    threads = 6 * 64
    assert (first.name, first.blocks, first.threads, first.shared_bytes) == (
        "main_kernel",
        6,
        64,
        0,
    )
    # x is read eight at a time, twice in each of three turns; of bias one float32 in each.
    assert first.work.loaded_bytes == threads * (3 * 2 * 16 + 3 * 4)
    assert first.work.stored_bytes == threads * (3 * 4 * 2 + 2 * 2)
    assert first.work.tensor_flops == 0


def test_grids_of_two_axes_shared_memory_and_products() -> None:
    _, second = scheduled(SCRIPT)
    assert (second.name, second.blocks, second.threads) == ("main_kernel_1", 10, 128)
    assert second.shared_bytes == 5120
    assert second.work.loaded_bytes == 10 * 128 * 16 * 8 * 2
    assert second.work.stored_bytes == 10 * 128 * 2
    assert second.work.tensor_flops == 10 * 4 * 32 * 2 * 16**3


def test_bounds_that_are_no_constants_are_refused() -> None:
    with pytest.raises(ValueError, match="constant bounds"):
        scheduled(SCRIPT.replace("range(1, 3)", "range(blockIdx_x)"))
