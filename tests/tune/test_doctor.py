"""What is said of this machine, and what when something is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from targets import cuda, cuda_toolkit, machines
from targets.cuda_toolkit import Toolkit, ToolkitError
from tune import cli, cubin, doctor, pins
from tune.doctor import Finding, examine


def finding(what: str) -> Finding:
    return next(found for found in examine() if found.what.startswith(what))


def test_this_machine_has_what_everything_needs() -> None:
    assert finding("TVM").found == pins.PINS["apache-tvm"]
    assert finding("this machine").found == machines("x86").host().device
    assert all(found.found for found in examine() if found.needed)


def test_a_missing_linker_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machines("x86"), "linker", lambda: None)
    assert cli.main(["doctor"]) == 3
    printed = capsys.readouterr()
    assert "linker for x86" in printed.out
    assert f"missing: {machines('x86').NO_LINKER}" in printed.out
    assert printed.err == f"septune: linker for x86: {machines('x86').NO_LINKER}\n"


def test_a_missing_emulator_is_told_and_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if "qemu" in name else which(name))
    assert cli.main(["doctor"]) == 0
    assert "apt-get install qemu-user" in capsys.readouterr().out


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "ncnn":
            raise doctor.PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    missing = finding("peer ncnn")
    assert missing.found is None
    assert missing.remedy == "ncnn is not installed; run: pip install -e '.[peers]'"


def test_what_compiles_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = Toolkit(nvcc=Path("/cuda/bin/nvcc"), version="13.0.88", runtime="rt", has_driver=True)
    monkeypatch.setattr(cuda_toolkit, "load", lambda: toolkit)
    monkeypatch.setattr(doctor, "version", lambda package: f"{package} 3.7.1")
    monkeypatch.setattr(cubin, "tool", lambda: "/cuda/bin/cuobjdump")
    monkeypatch.setattr(cuda, "_present", lambda smi: [("NVIDIA H200", "sm_90")])
    assert finding("CUDA toolkit").found == "/cuda/bin/nvcc 13.0.88, rt"
    assert finding("Triton").found == "triton 3.7.1"
    assert finding("cuobjdump").found == "/cuda/bin/cuobjdump"
    assert finding("GPU and its driver").found == "h200"


def test_what_a_gpu_lacks_is_told_and_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def toolkit() -> Toolkit:
        raise ToolkitError("no nvcc")

    def version(package: str) -> str:
        raise doctor.PackageNotFoundError(package)

    monkeypatch.setattr(cuda_toolkit, "load", toolkit)
    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(cuda, "_present", lambda smi: [])
    assert finding("CUDA toolkit").remedy == "no nvcc"
    assert finding("Triton").remedy == "triton is not installed; run: pip install -e '.[cuda]'"
    assert "no NVIDIA GPU that its driver knows of" in finding("GPU and its driver").remedy
    assert not any(finding(what).needed for what in ("CUDA", "Triton", "cuobjdump", "GPU"))


def test_targets_lists_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets"]) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in lines if row and row != ["kind", "device"]]
    known = [d for kind in ("x86", "arm64", "cuda") for d in machines(kind).DEVICES.values()]
    assert rows == [[device.kind, device.device] for device in dict.fromkeys(known)]
