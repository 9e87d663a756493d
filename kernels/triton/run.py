"""A call on torch tensors: on a GPU, or on the CPU in Triton's interpreter.

The interpreter is what `TRITON_INTERPRET=1` asks for, before a kernel's module is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.triton.call import Call


def run(call: Call, arguments: Sequence[torch.Tensor]) -> None:
    """Compute y, the last of `arguments`, from those before it.

    ValueError when there are not as many as the call takes, or one has another dtype or size.
    """
    expected = [(tensor.name, tensor.shape, tensor.dtype) for tensor in call.arguments]
    given = [
        (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in arguments
    ]
    if [fact[1:] for fact in expected] != given:
        raise ValueError(f"arguments are {given}; expected {expected}; pack weights and reshape x")
    tensors = {tensor.name: value for tensor, value in zip(call.arguments, arguments, strict=True)}
    for tensor in call.scratch:
        dtype = getattr(torch, tensor.dtype)
        tensors[tensor.name] = torch.empty(tensor.shape, dtype=dtype, device=arguments[0].device)
    for launch in call.launches:
        launch.kernel[(launch.programs,)](
            *(tensors[name] for name in launch.tensors),
            **launch.constants,
            DEPENDENT=False,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )
