"""Facts of compiled kernels against kernels whose facts are known, occupancy against NVIDIA's."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import cuda
from tune import cubin
from tune.cubin import inspect, occupancy
from tune.errors import SetupError

triton = pytest.importorskip("triton")
tl = triton.language

ARCHS = (80, 90, 100, 120)


@triton.jit
def double(x, y, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, mask=i < n) * 2.0, mask=i < n)


@triton.jit
def product(x, wt, y, K, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    i, k = tl.arange(0, BLOCK), tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for at in range(0, K, BLOCK_K):
        a = tl.load(x + i[:, None] * K + (at + k)[None, :])
        b = tl.load(wt + (at + k)[:, None] * BLOCK + i[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(y + i[:, None] * BLOCK + i[None, :], acc)


def compiled(
    function: Any, types: dict[str, str], constants: dict[str, int], arch: int, **options: int
) -> bytes:
    """Its cubin, every argument a multiple of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in function.params]
    source = ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in types},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    found = kernel.asm["cubin"]
    assert isinstance(found, bytes)
    return found


@cache
def doubling(arch: int) -> bytes:
    types = {"x": "*fp32", "y": "*fp32", "n": "i32"}
    return compiled(double, types, {"BLOCK": 1024}, arch, num_warps=4)


@cache
def multiplying(arch: int, dtype: str = "*fp16", **options: int) -> bytes:
    types = {"x": dtype, "wt": dtype, "y": "*fp32", "K": "i32"}
    constants = {"BLOCK": 128, "BLOCK_K": 32}
    return compiled(product, types, constants, arch, num_warps=4, num_stages=3, **options)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_streaming_kernel_is_wide_loads_and_additions(arch: int) -> None:
    facts = inspect(doubling(arch))
    (one,) = facts.kernels
    assert (facts.arch, one.name) == (f"sm_{arch}", "double")
    assert 8 <= one.registers <= 32
    # 1024 elements by 128 threads: 8 each, in two vectors.
    assert one.mix["LDG.E.128"] == one.mix["STG.E.128"] == one.wide_loads == 2
    assert one.count("FADD", "FMUL", "FADD2", "FMUL2") in (4, 8)
    assert (one.tensor, one.spills, one.local_bytes, one.shared_bytes) == (0, 0, 0, 0)
    assert len(one.depths) == 1


@pytest.mark.parametrize(
    ("arch", "opcode"), [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA"), (120, "HMMA")]
)
def test_a_product_is_a_loop_on_tensor_cores(arch: int, opcode: str) -> None:
    (one,) = inspect(multiplying(arch)).kernels
    outside, inside = one.depths
    assert one.mix[opcode] == one.tensor >= inside[opcode] > 0
    assert inside["LDGSTS.E.128"] > 0
    assert outside["STG.E.128"] > inside["STG.E.128"] == 0
    assert one.spills == one.local_bytes == one.shared_bytes == 0


def test_tf32_shows_in_the_name() -> None:
    (one,) = inspect(multiplying(80, "*fp32")).kernels
    assert one.mix["HMMA.TF32"] == one.tensor > 0


@pytest.mark.parametrize("arch", [80, 120])  # what feeds HGMMA and UTCHMMA needs more
def test_a_kernel_short_of_registers_spills(arch: int) -> None:
    (one,) = inspect(multiplying(arch, maxnreg=48)).kernels
    assert one.registers <= 48
    assert one.local_bytes > 0
    assert one.spills >= 10


def test_both_of_two_kernels_and_static_shared_memory_are_found() -> None:
    """Assembled by ptxas: `staged` has 512 bytes of shared memory, `plain` none."""
    ptxas = Path(cubin.tool()).with_name("ptxas")
    if not ptxas.exists():
        pytest.skip("no ptxas beside cuobjdump")
    text = """
        .version 8.0
        .target sm_90
        .address_size 64
        .visible .entry plain(.param .u64 y) { ret; }
        .visible .entry staged(.param .u64 y) {
            .shared .align 4 .b8 s[512];
            .reg .b32 %r<4>; .reg .b64 %d<4>;
            ld.param.u64 %d1, [y];
            mov.u32 %r1, %tid.x; mov.u32 %r2, s;
            shl.b32 %r3, %r1, 2; add.s32 %r2, %r2, %r3;
            st.shared.u32 [%r2], %r1; bar.sync 0; ld.shared.u32 %r3, [s];
            st.global.u32 [%d1], %r3; ret;
        }"""
    command = [ptxas, "-arch", "sm_90", "-o", "/dev/stdout", "/dev/stdin"]
    made = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout
    facts = inspect(made)
    assert facts.kernel("plain").shared_bytes == 0
    assert facts.kernel("staged").shared_bytes == 512
    assert facts.kernel("staged").mix["STS"] == 1
    with pytest.raises(ValueError, match="no kernel 'other'"):
        facts.kernel("other")


def test_cubins_are_found_inside_other_files() -> None:
    first, second = doubling(80), doubling(90)
    host = Path("/proc/self/exe").read_bytes()[:4096]  # an ELF file of another machine
    library = host + b"\x7fELF" + first + bytes(13) + second + b"\x7fEL"
    found = list(cubin.cubins(library))
    assert [inspect(one).arch for one in found] == ["sm_80", "sm_90"]
    assert first.startswith(found[0])
    assert second.startswith(found[1])


def test_what_is_no_cubin_is_refused() -> None:
    with pytest.raises(ValueError, match="no cubin"):
        inspect(b"\x7fELF and nothing more")


def test_without_a_disassembler_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(cubin, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="pip install"):
        cubin.tool.__wrapped__()


@pytest.mark.parametrize(
    ("device", "threads", "registers", "shared_bytes", "blocks", "share", "limit"),
    [
        # NVIDIA's Best Practices Guide, "Calculating Occupancy": 65,536 registers, 2,048 threads.
        ("a100", 128, 37, 0, 12, 0.75, "registers"),
        ("a100", 320, 37, 0, 4, 0.625, "registers"),
        ("a100", 256, 32, 0, 8, 1.0, "threads"),
        # Ampere and Hopper tuning guides: 163 and 227 KB a block, 1 KB of them reserved.
        ("a100", 128, 32, 163 * 1024, 1, 0.0625, "shared"),
        ("h100", 128, 32, 227 * 1024, 1, 0.0625, "shared"),
        ("h100", 128, 32, 113 * 1024, 2, 0.125, "shared"),
        ("h100", 128, 32, 227 * 1024 + 1, 0, 0.0, "shared"),
        ("h100", 32, 16, 0, 32, 0.5, "blocks"),
        ("rtx3090", 32, 16, 0, 16, 1 / 3, "blocks"),
        ("h100", 1024, 65, 0, 0, 0.0, "registers"),
        ("h100", 1056, 16, 0, 0, 0.0, "threads"),
        ("h100", 128, 256, 0, 0, 0.0, "registers"),
    ],
)
def test_occupancy_of_worked_examples(
    device: str,
    threads: int,
    registers: int,
    shared_bytes: int,
    blocks: int,
    share: float,
    limit: str,
) -> None:
    found = occupancy(cuda.DEVICES[device].gpu, threads, registers, shared_bytes)
    assert found == (blocks, pytest.approx(share), limit)


@pytest.fixture(scope="module")
def nvidia_says(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """NVIDIA's own occupancy calculator, a header of the CUDA runtime."""
    spec = find_spec("nvidia")
    folders = (
        [Path(root) / "cu13/include" for root in spec.submodule_search_locations or ()]
        if (spec)
        else []
    )
    folders.append(Path("/usr/local/cuda/include"))
    found = [folder for folder in folders if (folder / "cuda_occupancy.h").exists()]
    if not found:
        pytest.skip("no cuda_occupancy.h: the CUDA runtime's headers are not installed")
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "ask.cc").write_text("""
        #include <cuda_occupancy.h>
        extern "C" int blocks(int capability, int sms, int threads_per_sm, int registers_per_sm,
                              int shared_per_sm, int shared_per_block, int threads, int registers,
                              int shared) {
          cudaOccDeviceProp p;
          p.computeMajor = capability / 10; p.computeMinor = capability % 10;
          p.maxThreadsPerBlock = 1024; p.maxThreadsPerMultiprocessor = threads_per_sm;
          p.regsPerBlock = p.regsPerMultiprocessor = registers_per_sm; p.warpSize = 32;
          p.sharedMemPerBlock = 48 * 1024; p.sharedMemPerMultiprocessor = shared_per_sm;
          p.numSms = sms; p.sharedMemPerBlockOptin = shared_per_block;
          p.reservedSharedMemPerBlock = shared_per_sm - shared_per_block;
          cudaOccFuncAttributes f = {};
          f.maxThreadsPerBlock = 1024; f.numRegs = registers;
          f.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN; f.maxDynamicSharedSizeBytes = shared;
          f.numBlockBarriers = 1;
          cudaOccDeviceState s; cudaOccResult r;
          if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &f, &s, threads, shared)) return -1;
          return r.activeBlocksPerMultiprocessor;
        }""")
    library = folder / "ask.so"
    command = ["g++", "-shared", "-fPIC", f"-I{found[0]}", "-o", library, folder / "ask.cc"]
    subprocess.run(command, check=True)
    function: Callable[..., int] = ctypes.CDLL(str(library)).blocks
    return function


@given(
    arch=st.sampled_from(sorted(cuda.ARCHITECTURES)),
    threads=st.integers(1, 1024),
    registers=st.integers(1, 255),
    shared_bytes=st.integers(0, 230 * 1024),
)
def test_occupancy_is_what_nvidia_says(
    nvidia_says: Callable[..., int], arch: str, threads: int, registers: int, shared_bytes: int
) -> None:
    gpu = cuda.DEVICES[arch].gpu
    expected = nvidia_says(
        int(arch.removeprefix("sm_")),
        gpu.sms,
        gpu.threads_per_sm,
        gpu.registers_per_sm,
        gpu.shared_per_sm_bytes,
        gpu.shared_per_block_bytes,
        threads,
        registers,
        shared_bytes,
    )
    assert expected >= 0
    assert occupancy(gpu, threads, registers, shared_bytes).blocks == expected
