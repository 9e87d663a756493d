"""What a kernel scheduled in TVM asks of the machine, from the last form before it becomes CUDA.

There every loop has its bounds, every thread and block its extent, and every access to global
memory its width, so that what all threads load, store and multiply can be counted: accesses behind
a condition, too, for the machine spends time on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from tune.cubin import WARP
from tune.prediction import Work

FUNCTION = re.compile(r"def (\w+)\((.*)\):$")
HANDLE = re.compile(r'(\w+): T\.handle\("\w+", "global"\)')
DECLARED = re.compile(r"(\w+) = T\.decl_buffer\(\([\d, ]*\)(?:, \"(\w+)\")?, data=(\w+)")
SHARED = re.compile(r'T\.alloc_buffer\(\((\d+),\), "uint8", scope="shared\.dyn"\)')
EXTENT = re.compile(r'T\.launch_thread\("(blockIdx|threadIdx)\.\w", (\d+)\)')
LOOP = re.compile(r"for .* in (?:range|T\.\w+)\((.*)\):$")
TYPE = re.compile(r"[a-z]+(\d+)(?:x(\d+))?$")
PRODUCT_FLOPS = 2 * 16**3  # of a warp's T.tvm_mma_sync


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """One function of a GPU. `shared_bytes` is what it asks for when it is launched."""

    name: str
    blocks: int
    threads: int
    shared_bytes: int
    work: Work


def scheduled(script: str) -> tuple[Scheduled, ...]:
    """The functions in TVM's script of a module lowered for a GPU, in their order.

    ValueError when a loop's bounds are no constants.
    """
    lines = script.splitlines()
    starts = [number for number, line in enumerate(lines) if FUNCTION.match(line.strip())]
    ends = [*starts[1:], len(lines)]
    return tuple(_function(lines[start:end]) for start, end in zip(starts, ends, strict=True))


def _function(lines: list[str]) -> Scheduled:
    match = FUNCTION.match(lines[0].strip())
    assert match
    handles = HANDLE.findall(match[2])
    item_bytes: dict[str, float] = {}  # of each buffer in global memory
    loaded = stored = products = shared = 0.0
    extents: dict[str, list[int]] = {"blockIdx": [], "threadIdx": []}
    for line, times in _executed(lines[1:]):
        if declared := DECLARED.match(line):
            if declared[3] in handles:
                item_bytes[declared[1]] = _item_bytes(declared[2] or "float32")
            continue
        for kind, extent in EXTENT.findall(line):
            extents[kind].append(int(extent))
        if allocated := SHARED.search(line):
            shared += int(allocated[1])
        products += times * line.count("T.tvm_mma_sync(")
        for name, index, is_target in _accesses(line, item_bytes):
            size = times * item_bytes[name] * _lanes(index)
            loaded, stored = (loaded, stored + size) if is_target else (loaded + size, stored)
    blocks, threads = prod(extents["blockIdx"]), prod(extents["threadIdx"])
    work = Work(
        loaded_bytes=blocks * threads * loaded,
        stored_bytes=blocks * threads * stored,
        tensor_flops=blocks * threads / WARP * products * PRODUCT_FLOPS,
    )
    return Scheduled(
        name=match[1], blocks=blocks, threads=threads, shared_bytes=int(shared), work=work
    )


def _executed(lines: list[str]) -> Iterator[tuple[str, float]]:
    """Each line, and how often a thread executes it."""
    nest: list[tuple[int, float]] = []  # indentation of a loop, and runs of its body
    for line in lines:
        depth = len(line) - len(line.lstrip())
        while nest and line.strip() and depth <= nest[-1][0]:
            nest.pop()
        times = nest[-1][1] if nest else 1.0
        yield line.strip(), times
        if match := LOOP.match(line.strip()):
            nest.append((depth, times * _runs(match[1])))


def _runs(bounds: str) -> int:
    """Of a loop over `range(n)`, `range(a, b)` or TVM's like; an annotation may follow."""
    sizes = re.match(r"(\d+)(?:, (\d+))?(?:, \w+=.*)?$", bounds)
    if sizes is None:
        raise ValueError(
            f"a loop runs over ({bounds}); expected constant bounds; lower for one workload"
        )
    return int(sizes[2]) - int(sizes[1]) if sizes[2] else int(sizes[1])


def _accesses(line: str, buffers: dict[str, float]) -> Iterator[tuple[str, str, bool]]:
    """Name and index of each access to one of `buffers`, and whether it is written."""
    for match in re.finditer(r"(?<![\w.])(\w+)\[", line):
        if match[1] in buffers:
            depth, end = 1, match.end()
            while depth:
                depth += {"[": 1, "]": -1}.get(line[end], 0)
                end += 1
            yield match[1], line[match.end() : end - 1], match.start() == 0


def _lanes(index: str) -> int:
    """Elements at an index: a ramp's or a slice's length, or one."""
    if index.startswith("T.Ramp("):
        return int(index.rstrip(")").rpartition(", ")[2])
    start, colon, stop = index.partition(":")
    if not colon:
        return 1
    if start.isdecimal() and stop.isdecimal():
        return int(stop) - int(start)
    return int(stop.removeprefix(start).strip(" +"))


def _item_bytes(dtype: str) -> float:
    """Of a type such as float16 or float16x8."""
    match = TYPE.match(dtype)
    assert match, dtype
    return int(match[1]) / 8 * int(match[2] or 1)
