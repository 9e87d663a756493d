"""NVIDIA GPUs from Turing to Blackwell. A new card is a line of `DEVICES`.

An architecture's name, such as sm_90, is a name of its most common card, whose log it shares.

Source  Of an architecture: CUDA C++ Programming Guide, table "Technical Specifications per Compute
        Capability". Of a card, NVIDIA's own papers; throughput is dense, float16 is accumulated in
        float32, and the clock is the highest boost:
        t4        T4 datasheet; Turing Architecture whitepaper
        a100      A100 80GB SXM datasheet; A100 Architecture whitepaper
        a10       A10 datasheet
        rtx3090   Ampere GA102 Architecture whitepaper
        l4        L4 datasheet; Ada Architecture whitepaper
        rtx4090   Ada Architecture whitepaper
        h100      H100 SXM datasheet; H100 Architecture whitepaper
        h200      H200 SXM datasheet; L2 as its driver reports it
        b200      HGX B200 datasheet, an eighth of it; SMs, L2 and clock as its driver reports them
        rtx5090   RTX Blackwell Architecture whitepaper
"""

from __future__ import annotations

import subprocess
from typing import NamedTuple

from targets.target import GpuLimits, Target

# What the host does is compiled and linked as on any machine.
from targets.x86 import NO_LINKER as NO_LINKER
from targets.x86 import linker as linker

KIB, MIB = 1024, 1024 * 1024
TERA, GIGA, MHZ = 1e12, 1e9, 1e6


class _Architecture(NamedTuple):
    """What all cards of a compute capability share: of an SM, and the most that one block gets."""

    threads: int
    shared_kib: int
    shared_block_kib: int


ARCHITECTURES = {
    "sm_75": _Architecture(threads=1024, shared_kib=64, shared_block_kib=64),
    "sm_80": _Architecture(threads=2048, shared_kib=164, shared_block_kib=163),
    "sm_86": _Architecture(threads=1536, shared_kib=100, shared_block_kib=99),
    "sm_89": _Architecture(threads=1536, shared_kib=100, shared_block_kib=99),
    "sm_90": _Architecture(threads=2048, shared_kib=228, shared_block_kib=227),
    "sm_100": _Architecture(threads=2048, shared_kib=228, shared_block_kib=227),
    "sm_120": _Architecture(threads=1536, shared_kib=100, shared_block_kib=99),
}


def _device(
    device: str,
    arch: str,
    *,
    sms: int,
    clock_mhz: int,
    l2_kib: int,
    memory_gb_per_s: float,
    fp32: float,
    tf32: float,
    f16: float,
) -> Target:
    """Throughput in TFLOP/s."""
    shared = ARCHITECTURES[arch]
    limits = GpuLimits(
        arch=arch,
        sms=sms,
        threads_per_sm=shared.threads,
        shared_per_sm_bytes=shared.shared_kib * KIB,
        shared_per_block_bytes=shared.shared_block_kib * KIB,
        l2_bytes=l2_kib * KIB,
        memory_bytes_per_s=memory_gb_per_s * GIGA,
        clock_hz=clock_mhz * MHZ,
        fp32_flops=fp32 * TERA,
        tensor_f16_flops=f16 * TERA,
        tensor_tf32_flops=tf32 * TERA,
    )
    return Target(kind="cuda", device=device, mcpu=arch, features=frozenset(), limits=limits)


# From the oldest to the newest; the first of an architecture is its most common card.
_CARDS = (
    # Turing's tensor cores know no TF32.
    _device(
        "t4",
        "sm_75",
        sms=40,
        clock_mhz=1590,
        l2_kib=4096,
        memory_gb_per_s=320,
        fp32=8.1,
        tf32=0,
        f16=65,
    ),
    _device(
        "a100",
        "sm_80",
        sms=108,
        clock_mhz=1410,
        l2_kib=40960,
        memory_gb_per_s=2039,
        fp32=19.5,
        tf32=156,
        f16=312,
    ),
    _device(
        "a10",
        "sm_86",
        sms=72,
        clock_mhz=1695,
        l2_kib=6144,
        memory_gb_per_s=600,
        fp32=31.2,
        tf32=62.5,
        f16=125,
    ),
    _device(
        "rtx3090",
        "sm_86",
        sms=82,
        clock_mhz=1695,
        l2_kib=6144,
        memory_gb_per_s=936,
        fp32=35.6,
        tf32=35.6,
        f16=71,
    ),
    _device(
        "l4",
        "sm_89",
        sms=58,
        clock_mhz=2040,
        l2_kib=49152,
        memory_gb_per_s=300,
        fp32=30.3,
        tf32=60,
        f16=121,
    ),
    _device(
        "rtx4090",
        "sm_89",
        sms=128,
        clock_mhz=2520,
        l2_kib=73728,
        memory_gb_per_s=1008,
        fp32=82.6,
        tf32=82.6,
        f16=165.2,
    ),
    _device(
        "h100",
        "sm_90",
        sms=132,
        clock_mhz=1980,
        l2_kib=51200,
        memory_gb_per_s=3350,
        fp32=67,
        tf32=494.5,
        f16=989.5,
    ),
    _device(
        "h200",
        "sm_90",
        sms=132,
        clock_mhz=1980,
        l2_kib=61440,
        memory_gb_per_s=4800,
        fp32=67,
        tf32=494.5,
        f16=989.5,
    ),
    _device(
        "b200",
        "sm_100",
        sms=148,
        clock_mhz=1965,
        l2_kib=129536,
        memory_gb_per_s=7700,
        fp32=75,
        tf32=1125,
        f16=2250,
    ),
    _device(
        "rtx5090",
        "sm_120",
        sms=170,
        clock_mhz=2407,
        l2_kib=98304,
        memory_gb_per_s=1792,
        fp32=104.8,
        tf32=104.8,
        f16=209.5,
    ),
)
DEVICES = {target.device: target for target in _CARDS}
DEVICES |= {arch: next(t for t in _CARDS if t.mcpu == arch) for arch in ARCHITECTURES}

# What nvidia-smi calls a card -> its entry. Cards of the same chip with fewer SMs or another memory
# are other devices.
PRODUCTS = {
    "Tesla T4": "t4",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A10": "a10",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA GeForce RTX 5090": "rtx5090",
}


def host(smi: str = "nvidia-smi") -> Target:
    """The entry of this machine's first GPU. ValueError when there is none, or none that is known.

    smi  the driver's program that lists GPUs; asking the driver itself would spoil it for forks
    """
    for product, arch in _present(smi):
        if product in PRODUCTS:
            return DEVICES[PRODUCTS[product]]
        raise ValueError(
            f"this machine's GPU is {product!r}, {arch}; expected one of {', '.join(PRODUCTS)}; "
            f"name the most similar with --device"
        )
    raise ValueError(
        "this machine has no NVIDIA GPU that its driver knows of; expected one that nvidia-smi "
        "lists; name one with --device, such as sm_90, to build for it"
    )


def siblings(target: Target) -> frozenset[str]:
    """Other cards of the same architecture, which run the same code in much the same way."""
    alike = {card.device for card in _CARDS if card.mcpu == target.mcpu}
    return frozenset(alike - {target.device})


def can_run(target: Target, smi: str = "nvidia-smi") -> bool:
    """Whether code for `target` runs on this machine's first GPU.

    Code for Ampere and Ada runs on later minor versions, too. Since Hopper, tensor cores are
    programmed in a way that only the very same architecture knows.
    """
    major, minor = _capability(target.mcpu)
    found = [_capability(arch) for _, arch in _present(smi)[:1]]
    return any(one == (major, minor) or (one[0] == major == 8 and one[1] >= minor) for one in found)


def is_core(target: Target, smi: str = "nvidia-smi") -> bool:
    """Whether this machine's first GPU is a card of the entry's kind."""
    return any(PRODUCTS.get(product) == target.device for product, _ in _present(smi)[:1])


def instructions(target: Target) -> frozenset[str]:
    """Flags that the host's CPU must have: none but those of every x86-64."""
    return frozenset()


def cores() -> int:
    """Threads that compute on the host: one, which launches kernels."""
    return 1


def _present(smi: str) -> list[tuple[str, str]]:
    """Product name and architecture of each GPU of this machine, in the driver's order."""
    command = [smi, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode:
        return []
    rows = [line.rpartition(",") for line in done.stdout.splitlines()]
    return [(name.strip(), f"sm_{version.strip().replace('.', '')}") for name, _, version in rows]


def _capability(arch: str) -> tuple[int, int]:
    """Major and minor of a name such as sm_90 or sm_120."""
    digits = arch.removeprefix("sm_")
    return int(digits[:-1]), int(digits[-1])
