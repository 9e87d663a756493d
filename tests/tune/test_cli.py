"""The command line as a user meets it: what it prints, how it ends, what it leaves in the log."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kernels.version import version
from targets import machines
from tune import cli, database
from tune.cli import verbs
from tune.database import Record
from tune.mobilenet import MobileNet
from tune.pipeline import building

ROOT = Path(__file__).parents[2]
X86 = machines("x86")
HOST = X86.host()
SMALL = ["--alpha", "0.25", "--resolution", "32", "--threads", "1"]
MODEL = MobileNet(alpha=0.25, resolution=32)
LONG_S = 120
VERBS = (
    ["run"],
    ["build"],
    ["classify"],
    ["bench"],
    ["profile"],
    ["model"],
    ["log"],
    ["log", "show"],
)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit status and the one line that a failing command leaves."""
    status = cli.main(list(map(str, arguments)))
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("septune: ")]
    assert len(lines) == 1
    assert printed.err.endswith(f"{lines[0]}\n")
    assert "Traceback" not in printed.err + printed.out
    return status, lines[0].removeprefix("septune: ")


def record(**changes: Any) -> Record:
    """The default config of the stem, measured on this machine."""
    from kernels import kernel

    workload = MODEL.layers[0].workload
    fields: dict[str, Any] = {
        "workload": workload.key,
        "kernel": "te.conv",
        "kernel_version": version("te.conv", "x86", "float32"),
        "config": kernel("te.conv").space(workload, HOST).default,
        "target": "x86",
        "device": HOST.device,
        "threads": 1,
        "stage": "trial",
        "seconds": (1e-4, 1e-4, 2e-4),
        "error": None,
        "checked": True,
        "peak_flops": 1e11,
        "tvm": "0.27.0",
        "when": "2026-01-01T00:00:00+00:00",
    }
    return Record(**fields | changes)


def test_model_prints_the_numbers_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["model"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].split() == ["layer", "kind", "output", "stride", "multiply-adds"]
    assert first[1].split() == ["stem", "conv", "112x112x32", "2", "10.84", "M"]
    assert first[-2].split() == ["head", "head", "1001", "1.03", "M"]
    assert first[-1] == "568.74 M multiply-adds, 4,233,001 parameters, 1001 classes"
    assert len(first) == 30

    assert cli.main(["model", "--alpha", "0.5", "--resolution", "160"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "76.53 M multiply-adds, 1,332,105 parameters, 1001 classes"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from tune.cli import main\n"
        f"for verb in ([], *{VERBS!r}):\n"
        "    try:\n"
        "        main([*verb, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "heavy = {'numpy', 'torch', 'tvm', 'xgboost', 'PIL', 'tune.pipeline'}\n"
        "print(*sorted(heavy & {*sys.modules}), file=sys.stderr)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stderr.split() == []
    assert process.stdout.count("usage: python -m tune") == 1 + len(VERBS)
    assert "Exit status: 0 done; 1 a check failed" in process.stdout


def test_module_is_run_as_a_command() -> None:
    for arguments, status, line in (
        (["model"], 0, ""),
        (["model", "--alpha", "0"], 2, "septune: alpha is 0.0; expected a number above 0; "),
    ):
        process = subprocess.run(
            [sys.executable, "-m", "tune", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == status
        assert process.stderr.startswith(line)
        assert process.stderr.count("\n") == bool(line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: verb; see: python -m tune --help"),
        ("tune", "argument verb: invalid choice: 'tune'"),
        ("model --alpha wide", "argument --alpha: 'wide' is no width; expected a number such as "),
        ("model --alpha 0.5,", "argument --alpha: '0.5,' is no width; expected a number such as "),
        ("model --resolution 128,", "argument --resolution: '' is no count; expected a whole "),
        ("model --alpha 0.25,0.5", "--alpha and --resolution ask for 2 networks; expected one "),
        (
            "bench --resolution 32,64 --lib {}/net.so",
            "--lib and --weights are of one network; expected one, not 2; leave them out, ",
        ),
        ("model --alpha nan", "alpha is nan; expected a number above 0; pass 0.5 or 1.0"),
        ("model --alpha 1e307", "alpha is 1e+307; expected at most 100; pass 0.5 or 1.0"),
        ("model --resolution 31", "resolution is 31; expected a whole number; pass 32 or more"),
        ("model --batch 0", "argument --batch: '0' is no count; expected a whole number from 1 up"),
        ("model --body deep", "argument --body: invalid choice: 'deep'"),
        ("run --budget 5", "argument --budget: '5' is no duration; expected e.g. 90s, 5m or 1h"),
        ("run --budget 0s", "argument --budget: '0s' is no duration; expected e.g. 90s, 5m or 1h"),
        ("run --device pdp11", "device 'pdp11' is not known; expected one of x86-64-v3, "),
        ("run --target vax", "argument --target: invalid choice: 'vax'"),
        ("run --kernel te.magic --log {}/log", "kernel 'te.magic' is not known; expected one of "),
        ("build -o {}/net.dll", "output {}/net.dll is no .so; expected a name such as "),
        ("build -o {}/net.so --weights {}/w.pt", "{}/w.pt"),
        ("build", "the following arguments are required: -o/--output; see: "),
        ("classify --lib {}/net.so {}/photo.png", "no library at {}/net.so; expected a .so "),
        ("bench --peers nobody", "peer 'nobody' is not known; expected some of "),
        ("bench --lib {}/net.so --peers septune", "no library at {}/net.so; expected a .so "),
        ("bench --lib {}/net.so --json {}/net.json", "--json {}/net.json is a file that this "),
        ("run --log {}/log --json {}/new/../log", "/log is a file that this command needs; "),
        ("log diff {}/a {}/b --json {}/b", "--json {}/b is a file that this command needs; "),
        ("log export --log {}/log -o {}/new/../log", "/log is the log itself; expected another "),
        ("board start --port 70000", "argument --port: '70000' is no port; expected one from 1 to"),
        ("board stop --port 0", "argument --port: '0' is no port; expected one from 1 to 65535"),
        ("log show", "the following arguments are required: --log; see: "),
    ],
)
def test_wrong_requests(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("{}", str(tmp_path)) for word in arguments.split()]
    status, line = failure(capsys, *words)
    assert status == 2
    assert message.replace("{}", str(tmp_path)) in line


def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "net.so"
    log = tmp_path / "none.jsonl"
    assert failure(capsys, "build", *SMALL, "--log", log, "-o", output) == (
        2,
        f"cannot write {output}: File exists; expected a writable path; choose another -o",
    )
    database.append(log, [record()])
    json_path = tmp_path / "file" / "rows.json"
    status, line = failure(capsys, "log", "show", "--log", log, "--json", json_path)
    assert (status, line.split(":")[0]) == (2, f"cannot write {json_path}")


def test_output_that_cannot_be_linked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "net.so"
    output.mkdir()
    status, line = failure(capsys, "build", *SMALL, "--log", tmp_path / "none", "-o", output)
    assert status == 3
    assert re.match(rf"\S+ cannot link {output}: .*Is a directory; expected a linker that ", line)


def test_output_in_a_folder_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(building, "TemporaryFile", refuse)
    monkeypatch.setattr(building, "assemble", lambda *_: pytest.fail("it is made all the same"))
    output = tmp_path / "net.so"
    status, line = failure(capsys, "build", *SMALL, "--log", tmp_path / "none", "-o", output)
    assert (status, line.split(";")[0]) == (2, f"cannot write {output}: Permission denied")


def test_no_linker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    log = tmp_path / "none.jsonl"
    assert failure(capsys, "build", *SMALL, "--log", log, "-o", tmp_path / "net.so") == (
        3,
        "no C++ compiler on PATH; expected g++, c++ or clang++, which link what TVM compiles; "
        "install one, on Debian as root: apt-get install g++",
    )


def test_machine_that_cannot_run_the_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = [name for name, device in X86.DEVICES.items() if not X86.can_run(device)]
    status, line = failure(capsys, "run", *SMALL, "--device", lacking[0], "--log", tmp_path / "log")
    assert (status, line) == (
        3,
        f"this machine cannot run code for {lacking[0]}; expected a device of its own kind, "
        f"a board, or an estimator; leave --device out, or pass --rpc or --estimator",
    )
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "verb", ["log show", "run", "build -o net.so", "build --require-tuned -o n.so"]
)
def test_log_that_cannot_be_used(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [] if verb == "log show" else SMALL
    status, line = failure(capsys, *verb.split(), *options, "--log", tmp_path)
    assert (status, line) == (
        4,
        f"log {tmp_path} cannot be used: Is a directory; expected a file of JSON lines that can "
        f"be read and written; name another --log",
    )
    assert not list(ROOT.glob("n*.so"))


def test_missing_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = failure(capsys, "log", "show", "--log", tmp_path / "none")
    assert status == 4
    assert line.startswith(f"log {tmp_path / 'none'} cannot be used: No such file or directory; ")


def test_interrupt_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "show_model", interrupt)
    assert failure(capsys, "model") == (130, "stopped; every finished record is in the log")


def test_several_networks_are_tuned_in_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, stored = tmp_path / "log", tmp_path / "rows.json"
    words = ["run", "--alpha", "0.25,0.5", "--resolution", "32", "--threads", "1", "--trials", "12"]
    words += ["--kernel", "te.conv", "--json", str(stored)]
    assert cli.main([*words, "--log", str(log)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["network", "workloads", "trials", "all"]
    titles = [f"mobilenet_v1 alpha={alpha} 32x32 batch=1 float32 tf" for alpha in (0.5, 0.25)]
    assert [line[: len(title)] for line, title in zip(lines, titles, strict=False)] == titles
    assert lines[2:] == [f"log: {log}", f"json: {stored}"]
    rows = json.loads(stored.read_text())
    assert list(rows) == titles
    # 8 trials for the first stem, 4 for the second.
    assert [found[0]["trials"] for found in rows.values()] == [8, 4]
    trials = [r for r in database.read(log).records if r.stage == "trial"]
    assert len(trials) == 12


def test_log_show_on_a_torn_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, table = tmp_path / "log", tmp_path / "rows.json"
    default = record(seconds=(4e-4,))
    faster = record(config=record().config | {"BLOCK_HO": 2})
    failed = record(config=record().config | {"BLOCK_HO": 4}, seconds=(), error="run: no")
    database.append(log, [default, faster, failed, record(device="znver99")])
    log.write_bytes(b"# merged\n" + log.read_bytes() + log.read_bytes()[:100])

    assert cli.main(["log", "show", "--log", str(log), "--json", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["device", "workload", "config", "trials", "µs"]
    rows = {line.split()[0]: line.split() for line in lines[1:3]}
    assert set(rows) == {f"{HOST.device}/1", "znver99/1"}
    # 16 x 16 x 8 outputs of 27 terms in 100 µs, at a peak of 100 GFLOP/s
    assert rows[f"{HOST.device}/1"][-5:] == ["3", "100.0", "1.1", "1%", "4.00"]
    assert rows["znver99/1"][-4:] == ["1", "100.0", "1.1", "1%"]
    assert lines[3:] == [f"log: {log}, 2 unreadable lines skipped", f"json: {table}"]
    assert [row["failed"] for row in json.loads(table.read_text())] == [1, 0]


def test_build_without_records_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library, log = tmp_path / "new" / "net.so", tmp_path / "none.jsonl"
    assert cli.main(["build", *SMALL, "--log", str(log), "-o", str(library)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "28 layers: 28 default",
        "default: all; never measured anywhere; tune to make these layers fast",
        f"library: {library}",
    ]
    assert library.is_file()
    assert library.with_suffix(".json").is_file()
    assert not log.exists()

    photo = ROOT / "examples" / "photos" / "coffee.png"
    assert cli.main(["classify", "--lib", str(library), str(photo)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photo)
    odds = [float(line.split()[0]) for line in lines[1:]]
    assert len(odds) == 5
    assert odds == sorted(odds, reverse=True)

    (tmp_path / "photo.png").write_text("no photo")
    status, line = failure(capsys, "classify", "--lib", library, tmp_path / "photo.png")
    assert (status, "is no image that can be read" in line) == (2, True)


def test_build_that_requires_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, library = tmp_path / "log", tmp_path / "net.so"
    arguments = ["build", *SMALL, "--require-tuned", "--log", log, "-o", library]
    ending = f"; expected one of each layer, measured on {HOST.device}, threads 1, by the present "
    ending += "kernels; run: python -m tune run --target x86"
    start = f"no record in {log} for "
    names = [layer.name for layer in MODEL.layers]

    log.touch()
    assert failure(capsys, *arguments) == (1, f"{start}{', '.join(names)} (none){ending}")
    depthwise = {
        "kernel": "te.depthwise",
        "kernel_version": version("te.depthwise", "x86", "float32"),
    }
    second = record(threads=2, workload=MODEL.layers[1].workload.key, **depthwise)
    database.append(log, [record(), second])
    told = f"{names[1]} (only with threads 2), {', '.join(names[2:])} (none)"
    for verb in ("build", "log"):
        words = arguments if verb == "build" else ["log", "check", *SMALL, "--log", log]
        assert failure(capsys, *words) == (1, f"{start}{told}{ending}")
    assert not library.exists()
    log.unlink()
    assert failure(capsys, *arguments)[0] == 4


def trials(log: Path) -> Counter[tuple[str, str, str]]:
    """How often each config is recorded as tried."""
    contents = database.read(log)
    assert contents.skipped == 0
    return Counter(
        (record.workload, record.kernel, json.dumps(record.config, sort_keys=True))
        for record in contents.records
        if record.stage == "trial"
    )


def test_run_measures_each_config_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, rows = tmp_path / "new" / "log", tmp_path / "rows.json"
    arguments = ["run", *SMALL, "--trials", "3", "--log", str(log)]
    assert cli.main([*arguments, "--json", str(rows)]) == 0
    printed = capsys.readouterr()
    first = trials(log)
    assert sum(first.values()) == len(first) == 3
    assert sum(" trial " in line for line in printed.err.splitlines()) == 3
    lines = printed.out.splitlines()
    assert lines[0].split()[:2] == ["workload", "config"]
    assert lines[-2:] == [f"log: {log}", f"json: {rows}"]
    workloads = {layer.workload.key for layer in MODEL.layers}
    assert {row["workload"] for row in json.loads(rows.read_text())} == workloads
    for one in database.read(log).records:
        assert (one.device, one.threads, one.checked) == (HOST.device, 1, one.error is None)
        assert one.kernel_version == version(one.kernel, "x86", "float32")
        assert one.peak_flops is not None

    assert cli.main(arguments) == 0
    both = trials(log)
    assert sum(both.values()) == len(both) == 6
    assert first <= both


def finished(log: Path) -> bytes:
    """The whole lines of a log that is being written."""
    content = log.read_bytes() if log.exists() else b""
    return content[: content.rfind(b"\n") + 1]


@pytest.mark.slow
def test_killed_run_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tune", "run", *SMALL, "--log", str(log)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + LONG_S
    while finished(log).count(b"\n") < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = finished(log)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=LONG_S)
    content = log.read_bytes()
    assert content.startswith(before)
    contents = database.read(log)
    assert len(contents.records) == content.count(b"\n") >= 3
    tried = Counter(r.workload + json.dumps(r.config) for r in contents.records)
    assert set(tried.values()) == {1}

    subprocess.run(
        [*command, "--trials", "2"], cwd=ROOT, capture_output=True, timeout=LONG_S, check=True
    )
    assert log.read_bytes().startswith(content)
    after = [record for record in database.read(log).records if record.stage == "trial"]
    assert len(after) == len(contents.records) + 2
    tried = Counter(r.workload + json.dumps(r.config) for r in after)
    assert set(tried.values()) == {1}
