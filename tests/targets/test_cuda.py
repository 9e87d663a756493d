"""GPUs as data, and how they are recognised."""

from __future__ import annotations

from math import log2
from pathlib import Path

import pytest

from targets import cuda, machines, x86

# Single-precision lanes of one SM, by the CUDA programming guide's table of arithmetic throughput.
LANES = {"sm_75": 64, "sm_80": 64, "sm_86": 128, "sm_89": 128, "sm_90": 128, "sm_100": 128}
LANES |= {"sm_120": 128}


def smi(folder: Path, *lines: str, status: int = 0) -> str:
    """A program that prints what nvidia-smi prints for these GPUs."""
    path = folder / "nvidia-smi"
    text = "\n".join(lines)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_kind_is_in_the_table() -> None:
    assert machines("cuda") is cuda


@pytest.mark.parametrize("name", cuda.DEVICES)
def test_every_device_is_coherent(name: str) -> None:
    target = cuda.DEVICES[name]
    limits = target.gpu
    assert target.kind == "cuda"
    assert target.mcpu == limits.arch
    assert name in (target.device, target.mcpu)
    reserved = limits.shared_per_sm_bytes - limits.shared_per_block_bytes
    assert reserved == (0 if limits.arch == "sm_75" else 1024)
    assert limits.threads_per_sm % limits.threads_per_block in (0, 512)


@pytest.mark.parametrize("name", cuda.DEVICES)
def test_papers_agree_with_clock_and_cores(name: str) -> None:
    """A number typed wrong in any column breaks one of these."""
    limits = cuda.DEVICES[name].gpu
    computed = 2 * LANES[limits.arch] * limits.sms * limits.clock_hz
    assert limits.fp32_flops == pytest.approx(computed, rel=0.01)
    # Tensor cores do a power of two an SM and cycle; those of H100 and B200 at a lower clock.
    per_cycle = limits.tensor_f16_flops / limits.sms / limits.clock_hz
    assert 2 ** round(log2(per_cycle)) == pytest.approx(per_cycle, rel=0.085)
    assert limits.tensor_tf32_flops in (0, pytest.approx(limits.tensor_f16_flops / 2, rel=0.01))


def test_an_architecture_names_its_most_common_card() -> None:
    cards = {arch: cuda.DEVICES[arch].device for arch in cuda.ARCHITECTURES}
    assert cards["sm_90"] == "h100"
    assert cards["sm_80"] == "a100"
    assert all(cuda.DEVICES[arch] is cuda.DEVICES[card] for arch, card in cards.items())


@pytest.mark.parametrize("arch", cuda.ARCHITECTURES)
def test_tvm_knows_every_architecture(arch: str) -> None:
    target = cuda.DEVICES[arch]
    attributes = target.tvm().attrs
    assert str(attributes["arch"]) == arch
    assert int(attributes["max_shared_memory_per_block"]) == target.gpu.shared_per_block_bytes
    assert int(attributes["max_threads_per_block"]) == 1024
    assert str(target.tvm().host.kind) == "llvm"


@pytest.mark.parametrize("product", cuda.PRODUCTS)
def test_host_is_the_first_gpu(tmp_path: Path, product: str) -> None:
    target = cuda.DEVICES[cuda.PRODUCTS[product]]
    major, minor = divmod(int(target.mcpu.removeprefix("sm_")), 10)
    program = smi(tmp_path, f"{product}, {major}.{minor}", "NVIDIA Other, 9.0")
    assert cuda.host(program) is target
    assert cuda.is_core(target, program)
    assert cuda.can_run(target, program)


@pytest.mark.parametrize("lines", [[], ["NVIDIA L40S, 8.9"]])
def test_host_without_a_known_gpu_is_an_error(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(ValueError, match="--device") as caught:
        cuda.host(smi(tmp_path, *lines))
    assert all(line.partition(",")[0] in str(caught.value) for line in lines)


@pytest.mark.parametrize("program", ["/nonexistent/nvidia-smi", "failing"])
def test_no_driver_is_no_gpu(tmp_path: Path, program: str) -> None:
    if program == "failing":
        program = smi(tmp_path, "NVIDIA H100 80GB HBM3, 9.0", status=9)
    assert not cuda.can_run(cuda.DEVICES["h100"], program)
    assert not cuda.is_core(cuda.DEVICES["h100"], program)
    with pytest.raises(ValueError, match="no NVIDIA GPU"):
        cuda.host(program)


@pytest.mark.parametrize(
    ("capability", "able"),
    [
        ("8.0", {"a100"}),
        ("8.9", {"a100", "a10", "rtx3090", "l4", "rtx4090"}),
        ("9.0", {"h100", "h200"}),
        ("10.3", set()),
        ("12.0", {"rtx5090"}),
    ],
)
def test_code_runs_where_its_instructions_are_known(
    tmp_path: Path, capability: str, able: set[str]
) -> None:
    program = smi(tmp_path, f"NVIDIA Any, {capability}")
    runs = {name for name, target in cuda.DEVICES.items() if cuda.can_run(target, program)}
    assert {name for name in runs if not name.startswith("sm_")} == able


def test_the_host_links_as_any_machine() -> None:
    assert cuda.linker() == x86.linker()
    assert cuda.cores() == 1
