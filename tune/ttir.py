"""What a Triton kernel asks of the machine, from the first form that its compiler gives it.

There the sizes of blocks are types and bounds of loops are constants, so that what all programs
load, store and multiply can be counted: masked elements, too, for the machine spends time on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil

from tune.prediction import Work

CONSTANT = re.compile(r"(%\w+) = arith\.constant (-?\d+) : i\d+")
NUM_PROGRAMS = re.compile(r"(%\w+) = tt\.get_num_programs (\w) ")
PRODUCT = re.compile(r"(%\w+) = arith\.muli (%\w+), (%\w+) : i\d+")
LOOP = re.compile(r"scf\.for %\w+ = (%\w+) to (%\w+) step (%\w+)")
LOAD = re.compile(r"tt\.load .*: (?:tensor<([\dx]+)x)?!tt\.ptr<(\w+)>")
STORE = re.compile(r"tt\.store .*: (?:tensor<([\dx]+)x)?!tt\.ptr<(\w+)>")
DOT = re.compile(r"tt\.dot .*: tensor<([\dx]+)x\w+> \* .*-> tensor<([\dx]+)x\w+>")
BITS = re.compile(r"\d+$")


def work(ir: str, programs: int) -> Work:
    """Of `programs` programs together. ValueError when a loop's bounds are no constants.

    ir  as text, of a kernel compiled with its sizes as constants
    """
    loaded = stored = multiplied = 0.0
    balance = 1.0
    constants = _constants(ir, programs)
    for line, times in _executed(ir, constants):
        if match := LOAD.search(line):
            loaded += times * _elements(match[1]) * _item_bytes(match[2])
        elif match := STORE.search(line):
            stored += times * _elements(match[1]) * _item_bytes(match[2])
        elif match := DOT.search(line):
            depth = int(match[1].split("x")[-1])
            multiplied += times * 2 * depth * _elements(match[2])
        elif match := LOOP.search(line):
            runs = _trips(match, constants)
            balance = min(balance, runs / ceil(runs) if runs else 1.0)
    return Work(
        loaded_bytes=programs * loaded,
        stored_bytes=programs * stored,
        tensor_flops=programs * multiplied,
        balance=balance,
    )


def _constants(ir: str, programs: int) -> dict[str, int]:
    """Values of names, products of values among them. Programs lie along one axis."""
    found = {name: int(value) for name, value in CONSTANT.findall(ir)}
    found |= {name: programs if axis == "x" else 1 for name, axis in NUM_PROGRAMS.findall(ir)}
    for name, *factors in PRODUCT.findall(ir):
        if found.keys() >= {*factors}:
            found[name] = found[factors[0]] * found[factors[1]]
    return found


def _executed(ir: str, constants: dict[str, int]) -> Iterator[tuple[str, float]]:
    """Each line, and how often a program executes it on average."""
    times = [1.0]
    for line in map(str.strip, ir.splitlines()):
        if line.startswith("}"):
            times.pop()
        yield line, times[-1]
        if line.endswith("{"):
            match = LOOP.search(line)
            times.append(times[-1] * (_trips(match, constants) if match else 1))


def _trips(match: re.Match[str], constants: dict[str, int]) -> float:
    start, end, step = (constants.get(name) for name in match.groups())
    if end is None or step is None:
        raise ValueError(
            f"the loop '{match[0]}' has no constant bounds; expected a kernel whose sizes are "
            f"tl.constexpr; make them so"
        )
    if start is None:  # the program's own number: each takes every so many-th
        return end / step
    return max(0, -(-(end - start) // step))


def _elements(shape: str | None) -> int:
    product = 1
    for size in (shape or "1").split("x"):
        product *= int(size)
    return product


def _item_bytes(dtype: str) -> float:
    """Of a type such as f16, bf16 or i32."""
    bits = BITS.search(dtype)
    return int(bits[0]) / 8 if bits else 8
