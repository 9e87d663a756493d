"""Kernels on Intel's tile registers (AMX), in float32 by products of bfloat16."""
