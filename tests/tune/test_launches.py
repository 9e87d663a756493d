"""Real kernels of both kinds, compiled for a GPU that is not there: what is counted must add up."""

from __future__ import annotations

import pytest

from kernels import kernel, kernels_for
from kernels.workload import (
    ITEM_BYTES,
    Depthwise,
    Pointwise,
    Separable,
    Workload,
    flops,
    moved_bytes,
)
from targets import cuda
from tune.launches import launches
from tune.prediction import MEASURED, predict

pytest.importorskip("triton")

H100 = cuda.DEVICES["h100"]
DEPTHWISE = Depthwise(N=2, Hi=28, Wi=28, C=128, stride=1, pad=(1, 1, 1, 1), dtype="float16")
POINTWISE = Pointwise(N=2, H=28, W=28, Ci=128, Co=256, dtype="float16")
WORKLOADS: dict[str, Workload] = {
    "depthwise": DEPTHWISE,
    "pointwise": POINTWISE,
    "separable": Separable.of(DEPTHWISE, POINTWISE) or POINTWISE,
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_default_configs_of_every_kernel_add_up(name: str) -> None:
    workload = WORKLOADS[name]
    names = kernels_for(workload, H100)
    assert names
    for each in names:
        config = kernel(each).space(workload, H100).default
        found = launches(workload, each, config, H100)
        stored = ITEM_BYTES["float16"] * 2 * 28 * 28 * (256 if name != "depthwise" else 128)
        # The last launch stores y, and at most a ragged edge's worth more.
        assert stored <= found[-1].work.stored_bytes < 1.5 * stored
        loaded = sum(one.work.loaded_bytes for one in found)
        assert loaded >= moved_bytes(workload) - stored
        on_tensor_cores = sum(one.work.tensor_flops for one in found)
        if name == "depthwise":
            assert on_tensor_cores == 0
        elif on_tensor_cores:
            assert flops(POINTWISE) <= on_tensor_cores < 1.5 * flops(POINTWISE)
        for one in found:
            assert (one.work.tensor_flops > 0) == (one.facts.tensor > 0)
            prediction = predict(one, moved_bytes(workload), H100.gpu, "float16", MEASURED)
            assert 1e-6 < prediction.seconds < 100e-6
