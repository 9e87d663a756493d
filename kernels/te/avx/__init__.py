"""Kernels in straight LLVM code for x86, one file a kernel."""
