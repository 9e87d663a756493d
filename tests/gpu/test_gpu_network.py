"""The whole network on this machine's GPU: its logits against those of float64."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from targets import machines
from tune import pipeline
from tune.mobilenet import MobileNet
from tune.peers import Job
from tune.peers.judge import difference, expected_logits
from tune.pipeline.building import weights_of
from tune.runtime import load

pytestmark = pytest.mark.gpu
MODELS = {
    "quarter-float32": MobileNet(alpha=0.25, resolution=64, classes=10),
    "quarter-float16-batch3": MobileNet(
        alpha=0.25, resolution=64, classes=10, batch=3, dtype="float16"
    ),
    "whole-float16": MobileNet(dtype="float16"),
    "whole-float32-batch2": MobileNet(batch=2),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_logits_are_those_of_float64(model: MobileNet, tmp_path: Path) -> None:
    try:
        target = machines("cuda").host()
    except ValueError as error:
        pytest.skip(str(error))
    library = tmp_path / "network.so"
    log = pipeline.Log.at(None, target)
    pipeline.build(model, target, log, threads=1, weights=None, seed=0, output=library)
    network = load(library)
    job = Job.at_random(
        model, weights_of(model, None, 0), threads=os.cpu_count() or 1, seed=0, library=library
    )
    other = replace(job, x=np.random.default_rng(1).permuted(job.x))
    for each in (job, other, job):  # a graph that was captured reads what it is given now
        y = network(each.x.astype(model.dtype)).astype(np.float32)
        difference(each, y, expected_logits(each, timeout_s=300))
