"""The C++ application: built as its README says, with Python's answers, and clear about errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kernels.tolerance import network_tolerance
from targets import arm64, machines
from tune import images, pipeline
from tune.emulator import qemu
from tune.emulator.guest import Guest, guest
from tune.mobilenet import MobileNet
from tune.pins import PINS
from tune.runtime import load

ROOT = Path(__file__).parents[2]
CPP = ROOT / "examples" / "cpp"
PHOTOS = ROOT / "examples" / "photos"
LABELS = ROOT / "tune" / "data" / "imagenet_labels.txt"
HOST = machines("x86").host()
SMALL = MobileNet(alpha=0.25, resolution=32, classes=5, batch=2)
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(list(map(str, command)), capture_output=True, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done


def lines(*command: str | Path) -> list[str]:
    return run(*command).stdout.decode().splitlines()


def refused(*command: str | Path, **options: Any) -> str:
    """What a command that fails with status 1 says on stderr."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.strip()


def build(
    model: MobileNet, library: Path, device: Any = HOST, log: Path | None = None, **options: Any
) -> Path:
    records = pipeline.Log.at(log, device) if log is None else pipeline.Log(path=log)
    given = {"threads": 1, "weights": None, "seed": 1, "output": library} | options
    pipeline.build(model, device, records, **given)
    return library


def site() -> Path:
    import tvm_ffi

    return Path(tvm_ffi.__file__).parents[1]


def compiled(output: Path, *words: str | Path) -> Path:
    """A program of sources and options in `words`, linked as the README does."""
    tvm, ffi = site() / "tvm" / "lib", site() / "tvm_ffi" / "lib"
    run(
        *("g++", "-O1", "-std=c++17", "-pthread", *WARNINGS, f"-I{CPP}", *words, "-o", output),
        *(f"-L{tvm}", f"-L{ffi}", f"-Wl,-rpath,{tvm}:{ffi}"),
        *("-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-ldl"),
    )
    return output


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for two images at once, every layer at its default."""
    folder = tmp_path_factory.mktemp("small")
    return build(SMALL, folder / "net.so", log=folder / "none.jsonl")


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = (Path(__file__).parent / "checks.cc", CPP / "photo.cc")
    return compiled(tmp_path_factory.mktemp("checks") / "checks", *sources)


def change(library: Path, **changes: Any) -> None:
    manifest = json.loads(library.with_suffix(".json").read_text())
    library.with_suffix(".json").write_text(json.dumps(manifest | changes))


def test_header_alone_needs_nothing_of_tvm(tmp_path: Path) -> None:
    source = tmp_path / "user.cc"
    source.write_text(
        '#include "septune.hpp"\nint f(septune::Network &n) { return n.threads(); }\n'
    )
    run("g++", "-std=c++17", *WARNINGS, f"-I{CPP}", "-c", source, "-o", tmp_path / "user.o")
    interface = (CPP / "septune.hpp").read_text().partition("#endif // SEPTUNE_HPP")[0]
    code = [line for line in interface.splitlines() if not line.lstrip().startswith("//")]
    assert not [line for line in code if "TVM" in line or "tvm" in line or "DL" in line]


# What septune.hpp declares of TVM's interface, beside the original.
AGREEMENT = """
#define SEPTUNE_IMPLEMENTATION
#include "septune.hpp"
#include <tvm/ffi/c_api.h>
namespace abi = septune::detail::abi;
#define SAME(ours, theirs) static_assert(static_cast<long>(ours) == static_cast<long>(theirs), "")
#define SIZE(ours, theirs) SAME(sizeof(ours), sizeof(theirs))
#define PLACE(ours, a, theirs, b) SAME(offsetof(ours, a), offsetof(theirs, b))
SAME(abi::VERSION.major, TVM_FFI_VERSION_MAJOR);
SAME(abi::VERSION.minor, TVM_FFI_VERSION_MINOR);
SAME(abi::VERSION.patch, TVM_FFI_VERSION_PATCH);
SAME(abi::NONE, kTVMFFINone);
SAME(abi::INT, kTVMFFIInt);
SAME(abi::BOOL, kTVMFFIBool);
SAME(abi::POINTER, kTVMFFIOpaquePtr);
SAME(abi::RAW_STR, kTVMFFIRawStr);
SAME(abi::SMALL_STR, kTVMFFISmallStr);
SAME(abi::FIRST_COUNTED, kTVMFFIStaticObjectBegin);
SAME(abi::STR, kTVMFFIStr);
SAME(abi::FUNCTION, kTVMFFIFunction);
SAME(abi::TENSOR, kTVMFFITensor);
SAME(abi::CPU, kDLCPU);
SAME(abi::CUDA, kDLCUDA);
SAME(abi::UINT, kDLUInt);
SAME(abi::FLOAT, kDLFloat);
SIZE(abi::Version, TVMFFIVersion);
SIZE(abi::Object, TVMFFIObject);
PLACE(abi::Object, type, TVMFFIObject, type_index);
SIZE(abi::Bytes, TVMFFIByteArray);
PLACE(abi::Bytes, size, TVMFFIByteArray, size);
SIZE(abi::Any, TVMFFIAny);
PLACE(abi::Any, small_size, TVMFFIAny, small_str_len);
PLACE(abi::Any, number, TVMFFIAny, v_int64);
PLACE(abi::Any, pointer, TVMFFIAny, v_ptr);
PLACE(abi::Any, letters, TVMFFIAny, v_bytes);
PLACE(abi::Raised, kind, TVMFFIErrorCell, kind);
PLACE(abi::Raised, message, TVMFFIErrorCell, message);
SIZE(abi::Tensor, DLTensor);
PLACE(abi::Tensor, device, DLTensor, device);
PLACE(abi::Tensor, ndim, DLTensor, ndim);
PLACE(abi::Tensor, dtype, DLTensor, dtype);
PLACE(abi::Dtype, bits, DLDataType, bits);
PLACE(abi::Dtype, lanes, DLDataType, lanes);
PLACE(abi::Tensor, shape, DLTensor, shape);
PLACE(abi::Tensor, strides, DLTensor, strides);
PLACE(abi::Tensor, byte_offset, DLTensor, byte_offset);
SIZE(abi::Managed, DLManagedTensor);
PLACE(abi::Managed, context, DLManagedTensor, manager_ctx);
PLACE(abi::Managed, deleter, DLManagedTensor, deleter);
"""


def test_declarations_agree_with_tvms_own(tmp_path: Path) -> None:
    (tmp_path / "agree.cc").write_text(AGREEMENT)
    headers = f"-I{site() / 'tvm_ffi' / 'include'}"
    compile_it = ("g++", "-std=c++17", f"-I{CPP}", headers, "-c", tmp_path / "agree.cc")
    run(*compile_it, "-o", tmp_path / "agree.o")


def test_header_serves_a_program_of_several_sources(library: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.cc", tmp_path / "other.cc"
    one.write_text('#define SEPTUNE_IMPLEMENTATION\n#include "septune.hpp"\n')
    other.write_text(
        '#include "septune.hpp"\n#include <cstdio>\n'
        "int main(int, char **words) {\n"
        "    septune::Network first(words[1]), second = first.clone();\n"
        "    first = std::move(second);\n"
        '    std::printf("%d\\n", static_cast<int>(first.batch()));\n'
        "}\n"
    )
    assert lines(compiled(tmp_path / "program", one, other), library) == ["2"]


def test_ports_are_those_of_the_manifest(checks: Path, library: Path) -> None:
    assert lines(checks, "ports", library) == [
        f"image float32 2 32 32 3 = {2 * 32 * 32 * 3 * 4}",
        f"logits float32 2 5 = {2 * 5 * 4}",
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_number_of_images_is_computed_as_in_python(
    checks: Path, library: Path, count: int
) -> None:
    x = np.random.default_rng(count).uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32)
    printed = run(checks, "batch", library, str(count), input=x.tobytes()).stdout
    y = np.frombuffer(printed, np.float32).reshape(count, 5)
    padded = np.concatenate([x, np.zeros((count % 2, 32, 32, 3), np.float32)])
    network = load(library)
    pairs = [network(padded[at : at + 2]) for at in range(0, len(padded), 2)]
    expected = np.concatenate([np.zeros((0, 5), np.float32), *pairs])[:count]
    np.testing.assert_array_equal(y, expected)


def test_wrong_arguments_are_told_and_do_no_harm(checks: Path, library: Path) -> None:
    inputs = "expected image; pass memory for each by that name"
    assert lines(checks, "wrong", library) == [
        f"inputs are picture; {inputs}",
        f"inputs are none; {inputs}",
        "outputs are logits (null); expected logits; pass memory for each by that name",
        f"inputs are image more; {inputs}",
        "images are uint8; expected float32; convert them, or build with --input uint8",
        "nothing",
    ]


def test_threads_are_as_many_as_asked_for_and_stay_free(checks: Path, library: Path) -> None:
    """One that computes alone is bound to no core: others of its kind would be bound there, too."""
    cores = os.cpu_count() or 1
    total, before, after = map(int, run(checks, "threads", library, "1").stdout.split())
    assert (total, after) == (1, before)
    total, before, after = map(int, run(checks, "threads", library, str(cores + 1)).stdout.split())
    assert total == cores + 1


def test_clones_and_threads_do_not_disturb_each_other(checks: Path, library: Path) -> None:
    assert lines(checks, "together", library, "3") == ["0 of 6"]


def test_float16_is_numpys_to_the_last_bit(checks: Path) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    wide = np.frombuffer(run(checks, "halves", "wide", input=halves.tobytes()).stdout, np.float32)
    np.testing.assert_array_equal(wide, halves.astype(np.float32))
    numbers = halves[np.isfinite(halves)].astype(np.float32)
    ties = numbers[:-1] / 2 + numbers[1:] / 2
    near = [np.nextafter(ties, np.float32(side), dtype=np.float32) for side in (-np.inf, np.inf)]
    extremes = np.float32([65519, 65520, 1e38, np.inf, -np.inf, np.nan, 2**-25, 2**-26, 1e-40])
    x = np.concatenate([wide, ties, *near, extremes])
    printed = run(checks, "halves", "narrow", input=x.tobytes()).stdout
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    np.testing.assert_array_equal(np.frombuffer(printed, np.float16), expected)


DESCRIBED = "the library that its manifest describes"
REMEDY = "; build it again, or copy both files"


def test_library_that_was_cut_short(checks: Path, copied: Path) -> None:
    content = copied.read_bytes()
    copied.write_bytes(content[:-1])
    assert refused(checks, "ports", copied) == (
        f"{copied} has {len(content) - 1} bytes; expected {DESCRIBED}, of {len(content)}{REMEDY}"
    )


def test_library_that_was_changed(checks: Path, copied: Path) -> None:
    content = bytearray(copied.read_bytes())
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)
    assert refused(checks, "ports", copied) == (
        f"{copied} has another hash; expected {DESCRIBED}{REMEDY}"
    )


@pytest.mark.parametrize("size", [0, 1, 55, 56, 64, 65, 1 << 16, (1 << 16) + 60, 200_000])
def test_hash_is_that_of_the_manifest(checks: Path, copied: Path, size: int) -> None:
    """Whatever the size: the file passes as the library, and fails to be loaded as one."""
    import hashlib

    content = np.random.default_rng(size).bytes(size)
    copied.write_bytes(content)
    change(copied, library_bytes=size, library_sha256=hashlib.sha256(content).hexdigest())
    assert refused(checks, "ports", copied).startswith(f"cannot load {copied}: ")


def test_library_of_another_tvm(checks: Path, copied: Path) -> None:
    """Its byte code tells: TVM's own check, and what to do about it."""
    import hashlib

    content = copied.read_bytes()
    mark = b"\x04\x00\x00\x00\x00\x00\x00\x000.14"  # the byte code's version, after its length
    assert content.count(mark) == 1
    copied.write_bytes(content := content.replace(mark, mark[:-1] + b"3"))
    change(copied, tvm="0.26.0", library_sha256=hashlib.sha256(content).hexdigest())
    said = refused(checks, "ports", copied)
    assert said.startswith(f"cannot load {copied}: ")
    assert said.endswith(
        f"; expected to be linked with TVM 0.26.0 and apache-tvm-ffi {PINS['apache-tvm-ffi']}, "
        f"which it was built with; link those, or build it again"
    )


def test_library_for_another_machine(checks: Path, copied: Path) -> None:
    target = {"kind": "x86", "device": "later", "features": ["avx2", "avx1024"]}
    change(copied, target=target)
    assert refused(checks, "ports", copied) == (
        f"{copied} was built for later and needs avx1024, which this CPU lacks; "
        f"expected a build for this machine; build it with its --device"
    )
    change(copied, target=target | {"kind": "arm64"})
    assert refused(checks, "ports", copied) == (
        f"{copied} was built for arm64, this program for x86; expected the same; "
        f"build it with --target x86"
    )


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", "{}", '{"tvm": "1"}'])
def test_broken_manifest(checks: Path, copied: Path, text: str) -> None:
    copied.with_suffix(".json").write_text(text)
    said = refused(checks, "ports", copied)
    assert said.startswith(f"no manifest can be read at {copied.with_suffix('.json')}: ")
    assert said.endswith("; expected the .json that `septune build` writes; build it again")


def test_missing_files(checks: Path, copied: Path, tmp_path: Path) -> None:
    copied.unlink()
    assert refused(checks, "ports", copied) == (
        f"cannot read {copied}; expected a .so that `septune build` has written; check the path"
    )
    copied.with_suffix(".json").unlink()
    assert refused(checks, "ports", copied) == (
        f"cannot read {copied.with_suffix('.json')}; expected the manifest beside the library; "
        f"check the path"
    )
    assert refused(checks, "ports", tmp_path / "a").endswith("check the path")


def test_tvm_without_its_runtime_is_told(library: Path, tmp_path: Path) -> None:
    source = tmp_path / "main.cc"
    source.write_text(
        '#define SEPTUNE_IMPLEMENTATION\n#include "septune.hpp"\n#include <cstdio>\n'
        "int main(int, char **words) {\n"
        "    try { septune::Network network(words[1]); }\n"
        "    catch (const septune::Error &error) {\n"
        '        std::fprintf(stderr, "%s\\n", error.what());\n'
        "        return 1;\n"
        "    }\n"
        "}\n"
    )
    ffi = site() / "tvm_ffi" / "lib"
    run(
        *("g++", "-std=c++17", f"-I{CPP}", source, "-o", tmp_path / "main"),
        *(f"-L{ffi}", f"-Wl,-rpath,{ffi}", "-ltvm_ffi", "-ldl"),
    )
    assert refused(tmp_path / "main", library).endswith(
        "expected libtvm_runtime.so to be linked; link it with -Wl,--no-as-needed before "
        "-ltvm_runtime"
    )


def square_in_python(photo: Path, size: int) -> np.ndarray:
    return np.rint((images.read(photo, size)[0] + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("size", [16, 128, 224, 500])
@pytest.mark.parametrize("shape", [(400, 600), (601, 403), (224, 256), (3, 1)])
def test_photos_are_cut_and_resized_to_the_last_bit(
    checks: Path, tmp_path: Path, shape: tuple[int, int], size: int
) -> None:
    pixels = np.random.default_rng(size).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.ppm")
    printed = run(checks, "square", tmp_path / "photo.ppm", str(size)).stdout
    square = np.frombuffer(printed, np.uint8).reshape(size, size, 3)
    np.testing.assert_array_equal(square, square_in_python(tmp_path / "photo.ppm", size))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected PPM (P6)"),
        (b"P5 2 2 255\n....", "expected PPM (P6)"),
        (b"P6 2 2 65535\n" + bytes(24), "expected a PPM of 255 levels"),
        (b"P6 2 2 255\n" + bytes(11), "it is cut short"),
        (b"P6 # size\n 0 2 255\n", "its size is 0 by 2"),
        (b"P6 99999999999999999999 2 255\n", ""),
        (b"P6 99999 99999 255\n", "its size is 99999 by 99999"),
    ],
    ids=str,
)
def test_photos_that_cannot_be_read(
    checks: Path, tmp_path: Path, content: bytes, reason: str
) -> None:
    photo = tmp_path / "photo.ppm"
    photo.write_bytes(content)
    said = refused(checks, "square", photo, "32")
    assert said.startswith(f"{photo} is no image that can be read: {reason}")
    assert refused(checks, "square", tmp_path / "none", "32") == f"no photo at {tmp_path / 'none'}"


def commands(heading: str) -> str:
    """The shell lines of the README's first block that contain `heading`."""
    blocks = (CPP / "README.md").read_text().split("```\n")[1::2]
    return next(block for block in blocks if heading in block)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """examples/cpp as somebody has copied it."""
    shutil.copytree(CPP, tmp_path / "cpp")
    return tmp_path / "cpp"


def answers(words: Sequence[str | Path]) -> dict[str, list[tuple[float, str]]]:
    result = json.loads(run(*words).stdout)
    assert result["load_s"] > 0
    assert 0 < result["p20_s"] <= result["median_s"] <= result["p80_s"] <= result["p99_s"]
    return {photo: [tuple(one) for one in top] for photo, top in result["photos"].items()}


@pytest.mark.slow
def test_plain_command_classifies_as_python_does(
    mobilenet: Path, library: Path, folder: Path
) -> None:
    shutil.copy(mobilenet, folder)
    shutil.copy(mobilenet.with_suffix(".json"), folder)
    Image.open(PHOTOS / "coffee.png").save(folder / "photo.ppm")
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = commands("g++").replace("../../tune/data/imagenet_labels.txt", str(LABELS))
    done = run("bash", "-euc", script, cwd=folder, env=os.environ | {"PATH": python})
    printed = done.stdout.decode().splitlines()
    assert printed[:2] == ["photo.ppm", "   0.991  espresso"]
    assert " inferences, batch 1, threads 2: median " in printed[-2]

    options = ("--labels", LABELS, "--json", "--repeat", "3")
    found = answers([folder / "classify", mobilenet, *options, folder / "photo.ppm"])
    ((_, expected),) = pipeline.classify(mobilenet, [folder / "photo.ppm"], threads=1)
    (top,) = found.values()
    assert [label for _, label in top] == [label for _, label in expected]
    np.testing.assert_allclose([p for p, _ in top], [p for p, _ in expected], rtol=1e-6)

    bytes_in = build(SMALL, folder / "bytes.so", log=folder / "none", input_dtype="uint8")
    few = [
        answers([folder / "classify", network, "--json", folder / "photo.ppm"])
        for network in (library, bytes_in)
    ]
    assert few[0] == few[1]


@pytest.mark.slow
def test_cmake_builds_what_reads_png_and_jpeg(mobilenet: Path, folder: Path) -> None:
    if shutil.which("cmake") is None and os.environ.get("CI") != "true":
        pytest.skip("no cmake on PATH")
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run(
        "bash", "-euc", commands("cmake -B build"), cwd=folder, env=os.environ | {"PATH": python}
    )
    classify = [folder / "build" / "classify", mobilenet, "--json", "--repeat", "1"]
    configured = done.stdout.decode()
    photos = []
    if "Found PNG" in configured:
        photos += [PHOTOS / "coffee.png", PHOTOS / "chelsea.png"]
    if "Found JPEG" in configured:
        Image.open(PHOTOS / "coffee.png").save(folder / "coffee.jpg", quality=95)
        photos.append(folder / "coffee.jpg")
    if not photos and os.environ.get("CI") != "true":
        pytest.skip("CMake found neither libpng nor libjpeg")
    assert photos
    found = answers([*classify, "--labels", LABELS, *photos])
    for photo, likeliest in pipeline.classify(mobilenet, photos, threads=1):
        p, labels = zip(*found[str(photo)], strict=True)
        assert labels[0] == likeliest[0][1]
        # Decoders of JPEG may differ by a bit; those of PNG may not.
        rtol = 1e-6 if photo.suffix == ".png" else 0.01
        np.testing.assert_allclose(p[0], likeliest[0][0], rtol=rtol)
    (folder / "short.png").write_bytes((PHOTOS / "coffee.png").read_bytes()[:5000])
    said = refused(*classify, folder / "short.png")
    assert said.startswith(f"classify: {folder / 'short.png'} is no image that can be read: ")


def test_cmake_without_tvm_is_told(folder: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None and os.environ.get("CI") != "true":
        pytest.skip("no cmake on PATH")
    done = subprocess.run(
        ["cmake", "-B", "build", f"-DTVM_SITE={tmp_path}"], cwd=folder, capture_output=True
    )
    assert done.returncode != 0
    said = " ".join(done.stderr.decode().split())
    assert f"no {tmp_path}/tvm/lib/libtvm_runtime.so; expected the packages apache-tvm" in said


@pytest.fixture(scope="module")
def system() -> Guest:
    if shutil.which(qemu.PROGRAM) is None and os.environ.get("CI") != "true":
        pytest.skip(f"the emulated board needs {qemu.PROGRAM}")
    return guest()


@pytest.mark.slow
def test_built_for_arm64_it_answers_on_the_emulated_board(
    system: Guest, mobilenet_a76: Path, folder: Path, tmp_path: Path
) -> None:
    tools = ("cmake", "aarch64-linux-gnu-g++")
    if not all(map(shutil.which, tools)) and os.environ.get("CI") != "true":
        pytest.skip("no cmake and aarch64-linux-gnu-g++ on PATH")
    wheels = folder / "site-aarch64"
    wheels.symlink_to(system.site)
    run("bash", "-euc", commands("aarch64"), cwd=folder)
    device = arm64.DEVICES["cortex-a76"]
    Image.open(PHOTOS / "coffee.png").save(tmp_path / "coffee.ppm")
    command = [folder / "arm64" / "classify", mobilenet_a76, "--json", "--repeat", "1"]
    command += ["--threads", "1", "--labels", LABELS, tmp_path / "coffee.ppm"]
    (top,) = answers(system.command(*command, core="cortex-a76")).values()
    assert top[0][1] == "espresso"

    small = MobileNet(resolution=128)
    full = build(small, tmp_path / "full.so", log=tmp_path / "none")
    logits = load(full)(images.read(tmp_path / "coffee.ppm", 128))[0]
    terms = [layer.workload.terms for layer in small.layers]
    allowed = network_tolerance("float32", terms, scale=float(np.max(np.abs(logits))))
    ((_, expected),) = pipeline.classify(full, [tmp_path / "coffee.ppm"], threads=1)
    assert [label for _, label in top[:4]] == [label for _, label in expected[:4]]
    # A logit that is off by d changes a probability by a factor of e**d, and its sum by another.
    np.testing.assert_allclose(
        [p for p, _ in top[:4]], [p for p, _ in expected[:4]], rtol=2 * allowed
    )

    command[1] = build(replace(small, dtype="float16"), tmp_path / "half.so", device)
    (top,) = answers(system.command(*command, core="cortex-a76")).values()
    assert top[0][1] == expected[0][1]
    assert top[0][0] == pytest.approx(expected[0][0], abs=0.02)
