"""Imported once by the server that worker processes are forked from."""

import os

# References are computed by NumPy, whose threads spin for a while when they are done: on the core
# that the first candidate is being timed on by then, which took twice its time.
os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import numpy  # noqa: F401
import tvm
import tvm.s_tir  # noqa: F401

import tune.runners.local  # noqa: F401
