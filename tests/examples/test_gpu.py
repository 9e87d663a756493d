"""The script of a visit to a GPU, with a harvest and a pack that are made up."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples/gpu/visit.sh"
HARVEST = """
import pathlib, sys, time
import carried  # of the pack

folder = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
calls = folder / "calls.txt"
calls.write_text(calls.read_text() + "x" if calls.is_file() else "x")
for name in ("summary.md", "state.json", "net.so", "random.pt", "logs/cuda/h100.jsonl"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
(folder / "inductor").mkdir(exist_ok=True)
(folder / "inductor/kernel.py").touch()
print("harvesting", *sys.argv[1:])
if "hang" in sys.argv:
    time.sleep(99)
sys.exit(3 if "fail" in sys.argv else 0)
"""
SAVED = {"calls.txt", "h100.jsonl", "printed.txt", "state.json", "summary.md"}


class Machine:
    """A checkout, a pack in two parts, and the folders of visits."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        for name, text in (("tune/__init__.py", ""), ("tune/__main__.py", HARVEST)):
            path = folder / "checkout" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.script = folder / "checkout/examples/gpu/visit.sh"
        self.script.parent.mkdir(parents=True)
        shutil.copy(SCRIPT, self.script)
        (folder / "carried.py").touch()
        with tarfile.open(folder / "site.tar.xz", "w:xz") as pack:
            pack.add(folder / "carried.py", "carried.py")
        whole = (folder / "site.tar.xz").read_bytes()
        halves = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
        sums = "".join(
            f"{hashlib.sha256(half).hexdigest()}  site.tar.xz.{number}\n"
            for number, half in enumerate(halves)
        )
        for number, half in enumerate(halves):
            self.part(number).mkdir()
            (self.part(number) / f"site.tar.xz.{number}").write_bytes(half)
            (self.part(number) / "parts.sha256").write_text(sums)

    def part(self, number: int) -> Path:
        return self.folder / f"part{number}"

    def start(self, number: int, *options: str, **more: str) -> subprocess.Popen[str]:
        environment = os.environ | {"WORK": str(self.folder / "work"), "OUT": str(self.out)} | more
        command = [str(self.script), str(self.part(number)), *options]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=environment, cwd=self.folder, text=True, **streams)  # type: ignore[call-overload, no-any-return]

    def visit(self, number: int, *options: str, **more: str) -> tuple[int, str]:
        """Exit status, and what was printed."""
        process = self.start(number, *options, **more)
        printed, _ = process.communicate(timeout=60)
        return process.returncode, printed

    def saved(self) -> dict[str, str]:
        with tarfile.open(self.out / "harvest.tar.gz.0") as saved:
            return {
                Path(member.name).name: saved.extractfile(member).read().decode()  # type: ignore[union-attr]
                for member in saved
                if member.isfile()
            }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_it_waits_for_all_parts_then_harvests_and_goes_on(machine: Machine) -> None:
    assert machine.visit(0) == (0, "waiting for the other parts; there are site.tar.xz.0\n")
    assert not (machine.folder / "work/harvest").exists()
    status, printed = machine.visit(1, "--limit", "8m")
    assert status == 0
    assert printed == f"harvesting harvest -o {machine.folder}/work/harvest --limit 8m\n"
    assert set(machine.saved()) == SAVED
    assert {path.name for path in machine.out.iterdir()} == {"harvest.tar.gz.0", "summary.md"}
    shutil.rmtree(machine.out)
    assert machine.visit(1)[0] == 0
    assert machine.saved()["calls.txt"] == "xx"


def test_a_broken_part_is_told(machine: Machine) -> None:
    (machine.part(1) / "site.tar.xz.1").write_bytes(b"torn")
    assert machine.visit(0)[0] == 0
    status, printed = machine.visit(1)
    assert status == 1
    assert "site.tar.xz.1: FAILED" in printed
    assert "copy it again" in printed


@pytest.mark.parametrize(
    ("option", "most_s", "status"),
    [("fail", "60", 3), ("hang", "0.5", 124)],
    ids=["fails", "hangs"],
)
def test_however_the_harvest_ends_its_results_are_left(
    machine: Machine, option: str, most_s: str, status: int
) -> None:
    machine.visit(0)
    assert machine.visit(1, option, MOST_S=most_s)[0] == status
    assert set(machine.saved()) == SAVED


def test_results_are_left_by_a_visit_that_is_ended(machine: Machine) -> None:
    machine.visit(0)
    process = machine.start(1, "hang")
    while not (machine.folder / "work/harvest/inductor/kernel.py").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert set(machine.saved()) == SAVED


def test_another_machine_goes_on_from_results_among_the_parts(machine: Machine) -> None:
    machine.visit(0)
    machine.visit(1)
    shutil.copy(machine.out / "harvest.tar.gz.0", machine.part(0))
    shutil.rmtree(machine.folder / "work")
    machine.visit(0)
    assert machine.visit(1)[0] == 0
    assert machine.saved()["calls.txt"] == "xx"
