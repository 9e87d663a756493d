"""Imported once by the server that worker processes are forked from."""

import numpy  # noqa: F401
import tvm  # noqa: F401
import tvm.s_tir  # noqa: F401

import kernels.te
import kernels.te.conv
import kernels.te.depthwise
import kernels.te.head
import kernels.te.pointwise
import tune.runners.local  # noqa: F401
