"""Kernels as TVM tensor expressions with schedules for CUDA, one file a kernel."""
