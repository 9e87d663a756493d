"""Kernels in Triton for NVIDIA GPUs, one file a kernel, NHWC, compiled ahead of time.

A kernel's module has, beside the four functions of every kernel,

    call(workload, config, target) -> Call
        what it does as data: which tensors, which launches. `lower` compiles that to a function
        with the machine code inside (`aot`, `embed`); `run` executes it on torch tensors.
"""
