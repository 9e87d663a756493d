"""Machines are told by what /proc/cpuinfo says; the planted texts are cut from real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets import TARGETS, machines, x86
from targets.target import Limits

# Flags that all of these CPUs have, or that say nothing about vector units.
BASE = "fpu sse sse2 ssse3 sse4_1 sse4_2 movbe popcnt aes xsave rdrand lahf_lm abm"
AVX2 = f"{BASE} avx f16c fma avx2 bmi1 bmi2"
SKYLAKE = f"{AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
ICELAKE = f"{SKYLAKE} avx512ifma avx512vbmi avx512_vbmi2 gfni vaes avx512_vnni rdpid"
SAPPHIRE = f"{ICELAKE} avx_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8"
ZEN2 = f"{AVX2} sse4a rdpid clzero"
ZEN3 = f"{ZEN2} vaes vpclmulqdq"
ZEN4 = f"{ZEN3} {ICELAKE} avx512_bf16"

CPUS = {
    "Core i7-4770": ("GenuineIntel", AVX2, "haswell"),
    "Core i7-8700": ("GenuineIntel", f"{AVX2} rdseed adx", "haswell"),
    "Core i7-12700": ("GenuineIntel", f"{AVX2} avx_vnni gfni vaes rdpid", "alderlake"),
    "Xeon 8175M": ("GenuineIntel", SKYLAKE, "skylake-avx512"),
    "Xeon 8275CL": ("GenuineIntel", f"{SKYLAKE} avx512_vnni", "skylake-avx512"),
    "Xeon 8375C": ("GenuineIntel", ICELAKE, "icelake-server"),
    "Xeon 8488C": ("GenuineIntel", SAPPHIRE, "sapphirerapids"),
    "Xeon 6975P-C": ("GenuineIntel", f"{SAPPHIRE} amx_fp16", "graniterapids"),
    "EPYC 7571": ("AuthenticAMD", f"{AVX2} sse4a clzero", "x86-64-v3"),
    "EPYC 7R32": ("AuthenticAMD", ZEN2, "znver2"),
    "EPYC 7R13": ("AuthenticAMD", ZEN3, "znver3"),
    "EPYC 9R14": ("AuthenticAMD", ZEN4, "znver4"),
    "EPYC 9R45": ("AuthenticAMD", f"{ZEN4} avx_vnni avx512_vp2intersect", "znver5"),
    "Hygon C86": ("HygonGenuine", f"{AVX2} sse4a", "x86-64-v3"),
    "unknown with AVX-512": ("SomeNewVendor", ICELAKE, "x86-64-v4"),
    "unknown with half of AVX-512": ("SomeNewVendor", f"{AVX2} avx512f avx512cd", "x86-64-v3"),
}


def planted(folder: Path, vendor: str, flags: str, name: str = "a CPU") -> Path:
    """A cpuinfo of two processors."""
    processors = [
        f"processor\t: {number}\nvendor_id\t: {vendor}\nmodel name\t: {name} avx2 fma\n"
        f"flags\t\t: {flags}\nvmx flags\t: vnmi avx512f\nbugs\t\t: sysret_ss_attrs\n"
        for number in range(2)
    ]
    path = folder / "cpuinfo"
    path.write_text("\n".join(processors) + "\n")
    return path


@pytest.mark.parametrize("name", CPUS)
def test_host_is_the_entry_that_says_most(name: str, tmp_path: Path) -> None:
    vendor, flags, device = CPUS[name]
    cpuinfo = planted(tmp_path, vendor, flags, name)
    assert x86.host(cpuinfo) is x86.DEVICES[device]
    assert x86.can_run(x86.host(cpuinfo), cpuinfo)
    assert [entry.device for entry in x86.DEVICES.values() if x86.is_core(entry, cpuinfo)] == [
        device
    ]


@pytest.mark.parametrize(
    ("flags", "runs"),
    [
        (BASE, set()),
        (AVX2, {"x86-64-v3", "haswell"}),
        (ZEN2, {"x86-64-v3", "haswell", "znver2"}),
        (SKYLAKE, {"x86-64-v3", "haswell", "x86-64-v4", "skylake-avx512"}),
    ],
    ids=["before AVX2", "AVX2", "Zen 2", "Skylake"],
)
def test_runs_what_it_has_the_instructions_for(flags: str, runs: set[str], tmp_path: Path) -> None:
    """Of whichever vendor: code for a Haswell runs on a Zen."""
    cpuinfo = planted(tmp_path, "AuthenticAMD", flags)
    assert {name for name, device in x86.DEVICES.items() if x86.can_run(device, cpuinfo)} == runs


@pytest.mark.parametrize(
    ("granted", "device"), [(True, "sapphirerapids"), (False, "icelake-server")]
)
def test_tile_unit_that_linux_does_not_grant_is_none(
    granted: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = planted(tmp_path, "GenuineIntel", SAPPHIRE)
    monkeypatch.setattr(x86, "CPUINFO", cpuinfo)
    monkeypatch.setattr(x86, "_grants_tiles", lambda: granted)
    assert x86.host(cpuinfo).device == device
    assert x86.can_run(x86.DEVICES["sapphirerapids"], cpuinfo) == granted


NOTHING = (
    "this machine's CPU reports none of the vector units we have schedules for; "
    "expected flags avx2 fma; name a machine with --device"
)


@pytest.mark.parametrize("flags", [BASE, f"{BASE} avx f16c fma", f"{BASE} avx2", ""])
def test_no_avx2(flags: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        x86.host(planted(tmp_path, "GenuineIntel", flags))
    assert str(error.value) == NOTHING


def test_no_x86(tmp_path: Path) -> None:
    arm = tmp_path / "arm"
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd evtstrm\nCPU implementer\t: 0x41\n")
    for cpuinfo in (arm, tmp_path / "none"):
        with pytest.raises(ValueError, match="reports none of the vector units"):
            x86.host(cpuinfo)
        assert not any(x86.can_run(device, cpuinfo) for device in x86.DEVICES.values())


def test_entries_are_known_under_their_names() -> None:
    for name, device in x86.DEVICES.items():
        assert (device.kind, device.device) == ("x86", name)
        wide = "avx512f" in device.features
        limits = device.limits
        assert (limits.vector_bits, limits.vector_registers) == ((512, 32) if wide else (256, 16))
        assert device.features >= x86.AVX2
        assert limits.l1_bytes < limits.l2_bytes


def test_compiler_knows_every_core() -> None:
    """LLVM takes an unknown core for the oldest one, with no more than a warning."""
    from tvm.target.codegen import llvm_get_cpu_archlist

    for device in x86.DEVICES.values():
        assert device.mcpu in set(llvm_get_cpu_archlist(device.tvm()))


def test_lanes_by_dtype() -> None:
    limits = Limits(vector_bits=256, vector_registers=16, l1_bytes=1, l2_bytes=1)
    assert (limits.lanes("float32"), limits.lanes("float16")) == (8, 16)


def test_linker_is_the_first_of_those_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert x86.linker() is None
    for name in ("clang++", "c++", "g++"):
        (tmp_path / name).touch(mode=0o755)
        assert x86.linker() == (str(tmp_path / name),)


def test_kinds_of_machines_have_what_stages_ask_for() -> None:
    for kind in TARGETS:
        module = machines(kind)
        assert {target.kind for target in module.DEVICES.values()} == {kind}
        for name in ("host", "can_run", "is_core", "cores", "linker"):
            assert callable(getattr(module, name))
        assert "; expected " in module.NO_LINKER


def test_unknown_kind_of_machine() -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 the whole message is compared
        machines("vax")
    assert str(error.value) == (
        f"target 'vax' is not known; expected one of {', '.join(TARGETS)}; "
        f"a new kind is a new file in targets/"
    )
