"""A network on a GPU by datasheet: floors, and beside them what the model predicts of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kernels.workload import Workload
from targets.target import Target
from tune.mobilenet import MobileNet
from tune.pipeline.records import Log
from tune.plan import winner
from tune.prediction import MEASURED
from tune.roofline import MATHS, floor, fused

ESTIMATOR = "roofline"


def roofline(model: MobileNet, target: Target, log: Log) -> dict[str, Any]:
    """What each kernel of `model` takes at least, and the sums, layer by layer and fused.

    log  whose estimates stand beside the floors, as far as it has some
    """
    gpu = target.gpu
    apart: list[Workload] = [layer.workload for layer in model.layers]
    kinds: dict[str, list[Workload]] = {"apart": apart, "fused": fused(apart)}
    maths = [math for math in MATHS[model.dtype] if math != "tf32" or gpu.tensor_tf32_flops]
    rows = [row for found in kinds.values() for row in _rows(found, target, log, maths[0])]
    return {
        "model": model.name,
        "batch": model.batch,
        "dtype": model.dtype,
        "device": target.device,
        "memory_bytes_per_s": gpu.memory_bytes_per_s,
        "fp32_flops": gpu.fp32_flops,
        "tensor_flops": {"f16": gpu.tensor_f16_flops, "tf32": gpu.tensor_tf32_flops},
        "node_s": MEASURED.node_s,
        "kernels": list({row["workload"]: row for row in rows}.values()),
        "totals": [
            {
                "kind": kind,
                "math": math,
                "kernels": len(found),
                "floor_s": sum(floor(one, gpu, math).seconds for one in found),
                "predicted_s": _sum([row["predicted_s"] for row in _times(found, rows)])
                if math == maths[0]
                else None,
            }
            for math in maths
            for kind, found in kinds.items()
        ],
    }


def _rows(
    workloads: Sequence[Workload], target: Target, log: Log, math: str
) -> list[dict[str, Any]]:
    """One a distinct workload, in their order."""
    records = log.records()
    rows = []
    for workload in dict.fromkeys(workloads):
        least = floor(workload, target.gpu, math)
        predicted = winner(workload, records, target, 1, ESTIMATOR)
        rows.append(
            {
                "workload": workload.key,
                "layers": workloads.count(workload),
                "moved_bytes": least.moved_bytes,
                "flops": least.flops,
                "floor_s": least.seconds,
                "bound": least.bound,
                "kernel": predicted and predicted.kernel,
                "predicted_s": predicted and predicted.time_s,
            }
        )
    return rows


def _times(workloads: Sequence[Workload], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_key = {row["workload"]: row for row in rows}
    return [by_key[workload.key] for workload in workloads]


def _sum(times: Sequence[float | None]) -> float | None:
    """Of all, None when one is not known."""
    known = [time_s for time_s in times if time_s is not None]
    return sum(known) if len(known) == len(times) else None
