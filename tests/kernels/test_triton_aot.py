"""Triton kernels compiled ahead of time, without a GPU: what the code takes and consists of.

Whole networks take minutes to compile, so that these are layers whose default configs differ.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tvm

from kernels import kernel, kernels_for
from kernels.space import Config
from kernels.triton.aot import Binary, compile_call
from kernels.triton.call import Call
from kernels.triton.embed import DEPENDENT
from kernels.workload import ITEM_BYTES, Conv, Depthwise, Head, Pointwise, Separable, Workload
from targets import machines
from targets.target import Target
from tune import cubin, database, pipeline, sass
from tune.cubin import KernelFacts
from tune.mobilenet import MobileNet
from tune.plan import plan

DEVICES = machines("cuda").DEVICES
ARCHES = ("sm_80", "sm_90", "sm_100")
SAME: dict[str, Any] = {"stride": 1, "pad": (1, 1, 1, 1)}
HALF: dict[str, Any] = {"stride": 2, "pad": (0, 1, 0, 1)}
LAYERS: dict[str, Workload] = {
    "stem": Conv(N=1, Hi=224, Wi=224, Ci=3, Co=32, **HALF),
    "depthwise": Depthwise(N=1, Hi=14, Wi=14, C=512, **SAME),
    "depthwise, batch": Depthwise(N=256, Hi=56, Wi=56, C=128, **HALF),
    "pointwise": Pointwise(N=1, H=14, W=14, Ci=512, Co=512),
    "pointwise, batch": Pointwise(N=256, H=28, W=28, Ci=256, Co=256),
    "separable": Separable(N=1, Hi=56, Wi=56, C=128, Co=128, **SAME),
    "separable, batch": Separable(N=256, Hi=14, Wi=14, C=512, Co=512, **SAME),
    "separable_swapped": Separable(N=1, Hi=14, Wi=14, C=512, Co=512, **SAME),
    "head": Head(N=1, H=7, W=7, Ci=1024, Co=1001),
    "head, batch": Head(N=256, H=7, W=7, Ci=1024, Co=1001),
}
# Choices that make other code than the defaults do.
OTHERS: dict[str, tuple[str, Config]] = {
    "pixels first": ("depthwise", {"ORDER": "pixels"}),
    "persistent": ("pointwise, batch", {"PERSISTENT": 1, "GROUP_P": 8, "NUM_STAGES": 3}),
    "split": ("pointwise", {"SPLIT_CI": 2, "BLOCK_P": 64, "BLOCK_CO": 64, "BLOCK_CI": 64}),
    "pixels in order": ("separable", {"BLOCK_WO": 0}),
    "rows of a window": ("separable", {"WINDOW": "rows"}),
    "a step ahead": ("separable", {"WINDOW": "ahead", "BLOCK_P": 16, "BLOCK_C": 64}),
    "patches": ("separable", {"WINDOW": "whole", "BLOCK_C": 32, "ROWS": 2, "COLUMNS": 2}),
    "weights in steps": ("separable_swapped", {"BLOCK_C": 128, "BLOCK_P": 8, "NUM_WARPS": 4}),
    "half an SM": ("separable_swapped", {"RESIDENT": 2, "BLOCK_P": 4, "BLOCK_CO": 64}),
    "two launches": ("head", {"LAUNCHES": 2}),
    "one launch": ("head", {"LAUNCHES": 1, "BLOCK_CO": 16, "BLOCK_CI": 1024, "NUM_WARPS": 16}),
}
# What runs outside tensor cores is much the same on all, and compiled once for each of the others.
ALIKE = {"depthwise", "head", "pixels first", "two launches", "one launch"}
DEFAULTS = [
    (layer, dtype, arch)
    for layer in LAYERS
    for dtype in ITEM_BYTES
    for arch in ARCHES
    if arch == "sm_90"
    or not (layer in ALIKE or (layer == "depthwise, batch" and dtype != "float16"))
]
DEFAULT = pytest.mark.parametrize(("layer", "dtype", "arch"), DEFAULTS)
OTHER = pytest.mark.parametrize(
    ("other", "arch"),
    [(other, arch) for other in OTHERS for arch in ARCHES if arch == "sm_90" or other not in ALIKE],
)
ASSIGNED = re.compile(r"(%\w+)(?::\d+)? = (.*)")
LOADED = re.compile(r"tt\.load (%\w+)")
POINTER = re.compile(r"(%\w+): !tt\.ptr")
WAIT, LET_GO = "ACQBULK", "PREEXIT"  # for the launch before, and the one behind
GLOBAL = {"LDG", "LDGSTS", "UTMALDG", "STG", "UTMASTG", "LD", "ST", "ATOM", "ATOMG", "RED"}


def target_of(arch: str) -> Target:
    target: Target = DEVICES[arch]
    return target


@cache
def compiled(
    layer: str, dtype: str, arch: str, changes: tuple[tuple[str, Any], ...] = ()
) -> tuple[Call, tuple[Binary, ...], tuple[KernelFacts, ...]]:
    workload, target = replace(LAYERS[layer], dtype=dtype), target_of(arch)
    name = f"triton.{layer.partition(',')[0]}"
    assert name in kernels_for(workload, target)
    module: Any = kernel(name)
    space = module.space(workload, target)
    config = space.default | dict(changes)
    assert not changes or config in space, space.refusal(config)
    call = module.call(workload, config, target)
    binaries = compile_call(call, target)
    facts = tuple(cubin.inspect(each.cubin).kernel(each.name) for each in binaries)
    return call, binaries, facts


def assert_fits(
    call: Call, binaries: tuple[Binary, ...], facts: tuple[KernelFacts, ...], arch: str
) -> None:
    gpu = target_of(arch).gpu
    for launch, binary, fact in zip(call.launches, binaries, facts, strict=True):
        assert (fact.local_bytes, fact.spills, binary.frame_bytes) == (0, 0, 0)
        assert fact.registers == binary.registers
        shared_bytes = fact.shared_bytes + binary.shared_bytes
        fit = cubin.occupancy(gpu, binary.threads, fact.registers, shared_bytes)
        assert fit.blocks >= launch.resident


@DEFAULT
def test_default_config_spills_nothing_and_fits(layer: str, dtype: str, arch: str) -> None:
    call, binaries, facts = compiled(layer, dtype, arch)
    assert [each.tensors for each in binaries] == [launch.tensors for launch in call.launches]
    assert_fits(call, binaries, facts, arch)


@OTHER
def test_other_configs_spill_nothing_and_fit(other: str, arch: str) -> None:
    layer, changes = OTHERS[other]
    call, binaries, facts = compiled(layer, "float16", arch, tuple(changes.items()))
    assert_fits(call, binaries, facts, arch)


@pytest.mark.parametrize(
    ("layer", "dtype", "arch"), [case for case in DEFAULTS if "wise" in case[0] or "sep" in case[0]]
)
def test_loads_are_16_bytes_wide(layer: str, dtype: str, arch: str) -> None:
    """All of pixels and weights. Where operands are swapped, those of the product at least: pixels
    are shared among more threads than they have such pieces for. What else there is are biases.
    """
    call, [binary], [facts] = compiled(layer, dtype, arch)
    narrow = facts.count("LDG", "LDGSTS") - facts.wide_loads
    if "swapped" in layer:
        narrow -= facts.mix["LDG.E.64"] + facts.mix["LDG.E"]
        sizes: dict[str, Any] = dict(call.launches[0].constants)
        weights = sizes["BLOCK_CO"] * sizes["BLOCK_C"] * ITEM_BYTES[dtype]
        assert facts.wide_loads >= weights / (16 * binary.threads)
    assert facts.wide_loads > 0
    assert narrow == 0 if "depthwise" in layer else narrow <= 16


def before_the_wait(fact: KernelFacts) -> Counter[str]:
    """Instructions by opcode that a thread may come by before it waits, if it ever does."""
    blocks = sass._blocks(fact.code)
    after = sass._successors(blocks)
    found: Counter[str] = Counter()
    waiting, seen = [0], {0}
    while waiting:
        number = waiting.pop()
        opcodes = [one.opcode.partition(".")[0] for one in blocks[number]]
        if WAIT in opcodes:
            found.update(opcodes[: opcodes.index(WAIT)])
        else:
            found.update(opcodes)
            waiting += after[number] - seen
            seen |= after[number]
    return found


def read_before_the_wait(ir: str) -> set[str]:
    """Parameters that a program loads from until then, by the first form of its code."""
    made = {name: set(re.findall(r"%\w+", rest)) for name, rest in ASSIGNED.findall(ir)}
    waiting = LOADED.findall(ir.partition("griddepcontrol.wait")[0])
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting += made.get(name, set()) - seen
    return {name.removeprefix("%") for name in seen.intersection(POINTER.findall(ir))}


def assert_waits(binaries: tuple[Binary, ...], facts: tuple[KernelFacts, ...]) -> None:
    """For the launch before, in each program, which reads but weights and writes nothing until
    then, and lets none behind it go.
    """
    for binary, fact in zip(binaries, facts, strict=True):
        early = before_the_wait(fact)
        if binary.arch == "sm_80":
            assert fact.count(WAIT, LET_GO) == 0
            assert early.keys() & GLOBAL
        else:
            assert (fact.count(WAIT), fact.count(LET_GO)) == (1, 1)
            read = read_before_the_wait(binary.ir)
            assert read <= {"wt", "bias", "dw_wt", "dw_bias"}
            assert not early.keys() & {*GLOBAL, LET_GO, "EXIT"} - ({"LDG"} if read else set())
            assert ("LDG" in early) == bool(read)
            pixels = LOADED.findall(binary.ir.partition("griddepcontrol.wait")[2])
            assert fact.count("LDG", "LDGSTS", "UTMALDG") - early["LDG"] >= len(pixels)
        assert binary.dependent == (binary.arch != "sm_80")


@DEFAULT
def test_no_memory_is_touched_before_the_launch_before_has_ended(
    layer: str, dtype: str, arch: str
) -> None:
    _, binaries, facts = compiled(layer, dtype, arch)
    assert_waits(binaries, facts)


@OTHER
def test_nor_by_other_configs(other: str, arch: str) -> None:
    layer, changes = OTHERS[other]
    _, binaries, facts = compiled(layer, "float16", arch, tuple(changes.items()))
    assert_waits(binaries, facts)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_head_of_one_image_has_one_round_of_loads(dtype: str) -> None:
    """No loop, and all loads but those of biases 16 bytes wide."""
    _, binaries, facts = compiled("head", dtype, "sm_90")
    assert [len(fact.depths) for fact in facts] == [1, 1]
    assert min(fact.wide_loads for fact in facts) > 0
    assert sum(fact.count("LDG") - fact.wide_loads for fact in facts) <= 4
    assert binaries[-1].programs > 100


def test_stem_loads_two_values_at_a_time() -> None:
    """Half as many loads as the terms of a thread; those of float32 have 4 bytes anyway."""
    call, [binary], [facts] = compiled("stem", "float16", "sm_90")
    constants: dict[str, Any] = dict(call.launches[0].constants)
    terms = constants["BLOCK_HO"] * constants["BLOCK_WO"] * constants["TERMS"]
    assert facts.mix["LDG.E.U16"] == 0
    assert facts.mix["LDG.E"] == terms // 2 // binary.threads


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("layer", [name for name in LAYERS if name[0] in "ps"])
def test_float16_is_multiplied_on_tensor_cores(layer: str, arch: str) -> None:
    _, _, [facts] = compiled(layer, "float16", arch)
    assert facts.tensor > 0
    if arch == "sm_90" and "batch" in layer:  # of 64 rows and more
        assert facts.count("HGMMA") > 0
    if arch == "sm_100" and "pointwise, batch" in layer:
        assert facts.count("UTCHMMA") > 0


@pytest.mark.parametrize(
    ("device", "why", "batch"),
    [
        (*pair, batch)
        for pair in (("h100", "estimated"), ("h200", "measured"))
        for batch in (1, 256)
    ],
)
def test_committed_configs_spill_nothing_fit_and_load_wide(
    device: str, why: str, batch: int
) -> None:
    """Of all that a log makes a network of. Where there are many images, or products, loads are of
    8 bytes and more: an image alone is shared among more threads than it has such pieces for.
    """
    target = target_of(device)
    records = database.read(pipeline.Log.at(None, target).path).records
    choices = plan(MobileNet(batch=batch, dtype="float16").layers, records, target, threads=1)
    assert {choice.why for choice in choices} == {why}
    for choice in {choice.workload: choice for choice in choices}.values():
        if not choice.kernel.startswith("triton."):
            continue
        module: Any = kernel(choice.kernel)
        call = module.call(choice.workload, choice.config, target)
        binaries = compile_call(call, target)
        facts = tuple(cubin.inspect(each.cubin).kernel(each.name) for each in binaries)
        assert_fits(call, binaries, facts, device)
        first, multiplies = facts[0], choice.kernel not in ("triton.depthwise", "triton.head")
        if multiplies:
            assert first.tensor > 0, choice.name
        wide_alone = multiplies and choice.kernel != "triton.separable_swapped"
        if choice.kernel != "triton.stem" and (wide_alone or batch > 1):  # its pixels have 3 values
            wide = first.wide_loads + first.mix["LDG.E.64"]
            assert first.wide_loads > 0
            biases = 2 if choice.kernel == "triton.separable_swapped" else 1
            assert first.count("LDG", "LDGSTS") - wide <= biases, choice.name


@pytest.mark.parametrize("layer", ["pointwise", "separable", "stem"])
@pytest.mark.parametrize("word", ["ieee", "tf32x3"])
def test_float32_is_never_multiplied_as_tf32_unasked(layer: str, word: str) -> None:
    """Three products on tensor cores instead of one, or none; the word "tf32" is in no space."""
    target, workload = target_of("sm_90"), LAYERS[layer]
    module: Any = kernel(f"triton.{layer}")
    space = module.space(workload, target)
    words = next(knob.choices for knob in space.knobs if knob.name == "PRECISION")
    assert words == ("ieee", "tf32x3")
    config = space.default | {"PRECISION": word}
    [binary] = compile_call(module.call(workload, config, target), target)
    facts = cubin.inspect(binary.cubin).kernel(binary.name)
    if word == "ieee":
        assert facts.tensor == 0
        assert facts.count("FFMA") > 0
    if word == "tf32x3":
        assert facts.tensor > 0
    if word == "tf32x3" and layer == "stem":  # which has no loop that could be unrolled or not
        plain = module.call(workload, config | {"PRECISION": "tf32"}, target)
        [other] = compile_call(plain, target)
        assert facts.tensor == 3 * cubin.inspect(other.cubin).kernel(other.name).tensor


def test_turing_has_no_tf32() -> None:
    space = kernel("triton.pointwise").space(LAYERS["pointwise"], DEVICES["t4"])
    assert {config["PRECISION"] for config in space} == {"ieee"}


def test_z_of_separable_changes_layout_as_a_whole() -> None:
    """One change a step, not one a tap, of which each would wait at a barrier."""
    _, _, [facts] = compiled("separable, batch", "float16", "sm_90")
    assert facts.count("BAR") <= 8


def test_too_much_shared_memory_is_refused() -> None:
    target, workload = target_of("sm_90"), replace(LAYERS["pointwise, batch"], dtype="float16")
    module: Any = kernel("triton.pointwise")
    config = module.space(workload, target).default
    config |= {"BLOCK_P": 256, "BLOCK_CO": 256, "BLOCK_CI": 128, "NUM_STAGES": 4, "NUM_WARPS": 8}
    assert config not in module.space(workload, target)
    with pytest.raises(ValueError, match="shared memory") as error:
        compile_call(module.call(workload, config, target), target)
    asked = str(error.value).removeprefix("_pointwise asks for ").split()[0]
    assert int(asked) > target.gpu.shared_per_block_bytes
    assert str(error.value) == (
        f"_pointwise asks for {asked} bytes of shared memory; expected at most 232448 on sm_90; "
        f"take smaller blocks or fewer stages"
    )


def test_a_spill_is_seen() -> None:
    target = target_of("sm_80")
    workload = Pointwise(N=256, H=28, W=28, Ci=32, Co=256, dtype="float16")
    module: Any = kernel("triton.pointwise")
    config = module.space(workload, target).default
    config |= {"BLOCK_P": 256, "BLOCK_CO": 256, "NUM_STAGES": 2, "NUM_WARPS": 4}
    call = module.call(workload, config, target)
    [binary] = compile_call(call, target)
    facts = cubin.inspect(binary.cubin).kernel(binary.name)
    assert facts.spills > 0
    assert binary.frame_bytes == facts.local_bytes > 0
    with pytest.raises(AssertionError):
        assert_fits(call, (binary,), (facts,), "sm_80")


@pytest.mark.parametrize("arch", ARCHES)
def test_names_differ_wherever_the_code_does(arch: str) -> None:
    made = [compiled(*case) for case in DEFAULTS if case[-1] == arch]
    names = [binary.name for _, binaries, _ in made for binary in binaries]
    assert len(set(names)) == len(names)


def test_name_changes_with_the_source_and_not_with_a_comment() -> None:
    call, _, _ = compiled("depthwise", "float16", "sm_90")
    [launch] = call.launches

    class Edited:
        def __init__(self, old: str, new: str) -> None:
            self.src = launch.kernel.src.replace(old, new)
            assert self.src != launch.kernel.src
            self.__name__, self.__globals__ = launch.kernel.__name__, launch.kernel.__globals__

    name = launch.name(call.dtypes)
    assert replace(launch, kernel=Edited("# (BLOCK_C,)", "# another")).name(call.dtypes) == name
    assert replace(launch, kernel=Edited("- left", "+ left")).name(call.dtypes) != name
    assert replace(launch, num_warps=8).name(call.dtypes) != name
    assert launch.name(call.dtypes | {"x": "float32"}) != name


def linked(lowered: Any, target: Target) -> Any:
    """What TVM compiles, the machine code imported."""
    executable = tvm.compile(lowered, target=target.tvm())
    for external in lowered.attrs["external_mods"]:
        executable.mod.import_module(external)
    return executable


@pytest.mark.parametrize(
    ("other", "arch"), [("split", "sm_90"), ("two launches", "sm_90"), ("split", "sm_80")]
)
def test_lowered_is_one_function_with_its_machine_code(
    other: str, arch: str, tmp_path: Path
) -> None:
    layer, changes = OTHERS[other]
    target, workload = target_of(arch), replace(LAYERS[layer], dtype="float16")
    call, binaries, _ = compiled(layer, "float16", arch, tuple(changes.items()))
    module: Any = kernel(f"triton.{layer}")
    lowered = module.lower(workload, module.space(workload, target).default | changes, target)

    function = lowered["main"]
    assert bool(function.attrs["tirx.is_scheduled"])
    assert int(function.attrs["op_pattern"]) == 8
    shapes = [tuple(map(int, buffer.shape)) for buffer in function.params]
    assert shapes == [tensor.shape for tensor in call.arguments]
    script = function.script()
    for first, second in pairwise(binaries):
        assert script.index(first.name) < script.index(second.name)
    for binary in binaries:
        [line] = [line for line in script.splitlines() if f'"{binary.name}"' in line]
        given = line[line.index("call_packed(") + len("call_packed(") : -1].split(", ")[1:]
        launch = [str(binary.threads), str(binary.programs)]
        launch += [str(binary.shared_bytes)] if binary.shared_bytes else []
        pointers = [f"{name}.data" for name in binary.tensors]
        assert given == [*pointers, "T.int64(0)", "T.int64(0)", *launch]

    path = tmp_path / "kernel.so"
    linked(lowered, target).export_library(str(path))
    library = path.read_bytes()
    assert {each.cubin for each in binaries} == set(cubin.cubins(library))
    assert (DEPENDENT.encode() in library) == (arch != "sm_80")
    loaded = tvm.runtime.load_module(str(path))
    assert [imported.kind for imported in loaded.imports] == ["cuda"] * len(binaries)
