"""Kernels as TVM tensor expressions and their schedules, one file a kernel."""
