"""An aarch64 machine made of unpacked packages and QEMU, which counts what is executed.

Emulated time means nothing; the number of executed instructions is exact and repeatable.
"""

from __future__ import annotations

# A program under the counter marks a moment by the system call getpriority(MARK, 0), which fails.
MARK = 0x5E7
