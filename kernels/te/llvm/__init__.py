"""Kernels whose innermost code is LLVM's own, in TensorIR's loops over tiles, one file a kernel."""
