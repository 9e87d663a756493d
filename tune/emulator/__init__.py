"""An aarch64 machine made of unpacked packages and QEMU, which counts what is executed.

Emulated time means nothing; the number of executed instructions is exact and repeatable.
"""
