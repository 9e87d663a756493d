"""What a thread of a compiled kernel takes, as its cubin says: no disassembler is needed for that.

A cubin is an ELF file whose section `.nv.info` lists attributes of its functions: one byte for how
a value is stored, one for what it is, then the value, or its size and a symbol and the value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

SIZED = 4  # the way of storing for which a size follows
FRAME_SIZE, REGISTERS = 0x11, 0x2F


class Resources(NamedTuple):
    """Registers, and bytes of memory of a thread's own, where it spills what they do not hold."""

    registers: int
    frame_bytes: int


def resources(cubin: bytes) -> Resources:
    """Of the only function in `cubin`, or the most that any takes."""
    found = {FRAME_SIZE: 0, REGISTERS: 0}
    for what, value in _attributes(_section(cubin, b".nv.info")):
        if what in found:
            found[what] = max(found[what], value)
    return Resources(registers=found[REGISTERS], frame_bytes=found[FRAME_SIZE])


def _attributes(section: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at + 4 <= len(section):
        how, what, size = struct.unpack_from("<BBH", section, at)
        at += 4
        if how == SIZED:
            if size == 8:
                yield what, struct.unpack_from("<II", section, at)[1]
            at += size


def _section(cubin: bytes, name: bytes) -> bytes:
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    (strings,) = struct.unpack_from("<Q", cubin, headers + names * size + 0x18)
    for index in range(count):
        (at,) = struct.unpack_from("<I", cubin, headers + index * size)
        start, length = struct.unpack_from("<QQ", cubin, headers + index * size + 0x18)
        if cubin[strings + at : cubin.index(b"\0", strings + at)] == name:
            return cubin[start : start + length]
    return b""
