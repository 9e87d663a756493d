"""Imported once by the server that worker processes are forked from."""

import os

# References are computed by NumPy, whose threads spin for a while when they are done: on the core
# that the first candidate is being timed on by then, which took twice its time.
os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# Else TVM's binding asks PyTorch for a GPU while it is imported. The question starts the CUDA
# driver, which no process forked afterwards can use. What is left out lets TVM's functions take
# PyTorch's tensors and streams; ours get TVM's own.
os.environ["TVM_FFI_DISABLE_TORCH_C_DLPACK"] = "1"

import numpy  # noqa: F401
import tvm
import tvm.s_tir  # noqa: F401

import tune.runners.local  # noqa: F401

del os.environ["TVM_FFI_DISABLE_TORCH_C_DLPACK"]  # programs that workers start may want it
