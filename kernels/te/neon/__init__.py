"""Kernels as TVM tensor expressions with schedules for 64-bit Arm, one file a kernel."""
