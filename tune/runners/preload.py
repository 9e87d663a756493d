"""Imported once by the server that worker processes are forked from."""

import numpy  # noqa: F401
import tvm
import tvm.s_tir  # noqa: F401

import tune.runners.local  # noqa: F401
