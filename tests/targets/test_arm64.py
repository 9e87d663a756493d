"""Arm cores as data, how they are recognised, and what links for them."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from targets import arm64, machines, x86
from targets.target import Endpoint
from tune.builder import export, linker
from tune.errors import SetupError

PI_5 = "fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
PI_4 = "fp asimd evtstrm crc32 cpuid"


def cpuinfo(folder: Path, features: str, *parts: tuple[int, int]) -> Path:
    """A file as the kernel writes it, one processor for each (implementer, part)."""
    path = folder / "cpuinfo"
    path.write_text(
        "\n".join(
            f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\n"
            f"CPU implementer\t: {implementer:#04x}\nCPU architecture: 8\nCPU variant\t: 0x4\n"
            f"CPU part\t: {part:#05x}\nCPU revision\t: 1\n"
            for number, (implementer, part) in enumerate(parts)
        )
    )
    return path


@pytest.mark.parametrize("device", arm64.DEVICES)
def test_every_device_is_coherent(device: str) -> None:
    target = arm64.DEVICES[device]
    assert (target.kind, target.device) == ("arm64", device)
    assert target.limits.lanes("float32") == 4
    assert target.limits.vector_registers == 32
    assert target.limits.fma_per_cycle in (1, 2, 4)
    assert target.mcpu in arm64.PARTS.values()
    assert "asimd" in target.features
    assert ("+dotprod" in target.mattr) == ("asimddp" in target.features)
    assert ("+fullfp16" in target.mattr) == ("asimdhp" in target.features)


@pytest.mark.parametrize("device", arm64.DEVICES)
def test_llvm_knows_every_core(device: str) -> None:
    import tvm

    attributes = arm64.DEVICES[device].tvm().attrs
    triple, core = str(attributes["mtriple"]), str(attributes["mcpu"])
    assert (triple, core) == ("aarch64-linux-gnu", arm64.DEVICES[device].mcpu)
    assert tvm.get_global_func("target.llvm_is_valid_cpu")(core, triple)


def test_kind_is_in_the_table() -> None:
    assert machines("arm64") is arm64


def test_host_is_the_most_capable_known_core(tmp_path: Path) -> None:
    big_little = cpuinfo(tmp_path, PI_5, (0x41, 0xD05), (0x41, 0xD0B), (0x41, 0xD44))
    assert arm64.host(big_little).device == "cortex-x1"


def test_host_that_is_not_known_names_its_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0x41/0xd99.*cortex-a76.*--device"):
        arm64.host(cpuinfo(tmp_path, PI_5, (0x41, 0xD99)))


def test_host_that_is_no_arm_says_so() -> None:
    with pytest.raises(ValueError, match="no 64-bit Arm"):
        arm64.host(Path("/nonexistent"))


@pytest.mark.parametrize(
    ("device", "features", "able"),
    [
        ("cortex-a72", PI_4, True),
        ("cortex-a76", PI_4, False),
        ("cortex-a72", PI_5, True),
        ("cortex-a76", PI_5, True),
        ("neoverse-v1", PI_5, False),
    ],
)
def test_can_run_asks_for_features(device: str, features: str, able: bool, tmp_path: Path) -> None:
    machine = cpuinfo(tmp_path, features, (0x41, 0xD08))
    assert arm64.can_run(arm64.DEVICES[device], machine) is able


def test_is_core_reads_the_part(tmp_path: Path) -> None:
    pi_4 = cpuinfo(tmp_path, PI_4, (0x41, 0xD08))
    assert arm64.is_core(arm64.DEVICES["cortex-a72"], pi_4)
    assert not arm64.is_core(arm64.DEVICES["cortex-a76"], pi_4)
    n1 = cpuinfo(tmp_path, PI_5, (0x41, 0xD0C))
    assert arm64.is_core(arm64.DEVICES["graviton2"], n1)
    assert arm64.host(n1).device == "neoverse-n1"


def test_is_core_of_x86_is_its_host() -> None:
    assert x86.is_core(x86.host())
    assert not x86.is_core(x86.DEVICES["haswell"], Path("/nonexistent"))


@pytest.mark.parametrize(
    ("machine", "present", "expected"),
    [
        ("x86_64", {"aarch64-linux-gnu-g++", "g++"}, "aarch64-linux-gnu-g++"),
        ("aarch64", {"aarch64-linux-gnu-g++", "g++"}, "g++"),
        ("aarch64", {"clang++"}, "clang++"),
        ("arm64", {"g++", "aarch64-linux-gnu-g++"}, "aarch64-linux-gnu-g++"),
    ],
)
def test_linker_of_this_machine(
    machine: str, present: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm64.platform, "machine", lambda: machine)
    monkeypatch.setattr(arm64.shutil, "which", lambda name: name if name in present else None)
    assert arm64.linker() == (expected,)


def test_zig_links_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm64.shutil, "which", lambda name: None)
    monkeypatch.setattr(arm64, "find_spec", lambda name: name == "ziglang")
    command = arm64.linker()
    assert command is not None
    assert command[1:3] == ("-m", "ziglang")
    assert command[-2:] == ("-target", "aarch64-linux-gnu.2.28")


def test_no_linker_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm64.shutil, "which", lambda name: None)
    monkeypatch.setattr(arm64, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"aarch64-linux-gnu-g\+\+.*ziglang.*pip install"):
        linker(arm64.DEVICES["cortex-a76"])


@pytest.mark.parametrize("tool", ["aarch64-linux-gnu-g++", "ziglang"])
def test_what_is_linked_loads_on_an_old_system(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (shutil.which(tool) or find_spec(tool)):
        pytest.skip(f"{tool} is not installed")
    if tool == "ziglang":
        monkeypatch.setattr(arm64.shutil, "which", lambda name: None)
    import tvm

    from kernels.te import peak

    target = arm64.DEVICES["cortex-a76"]
    library = tmp_path / "peak.so"
    export(tvm.compile(peak.lower(target, "float32", 1), target=target.tvm()), target, library)
    content = library.read_bytes()
    assert content[:4] == b"\x7fELF"
    assert int.from_bytes(content[18:20], "little") == 0xB7  # EM_AARCH64
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", content)
    assert all((int(major), int(minor)) <= (2, 28) for major, minor in versions)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9090", "127.0.0.1", 9090),
        ("raspberrypi.local:1", "raspberrypi.local", 1),
        ("[::1]:65535", "::1", 65535),
    ],
)
def test_endpoint_reads_what_it_writes(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint == Endpoint(host=host, port=port)
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    ["", "board", ":9090", "board:", "board:x", "::1:9090", "[]:9090", "b:0", "b:65536", "b:²"],
)
def test_endpoint_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"address .*; expected .*; "):
        Endpoint.parse(text)
