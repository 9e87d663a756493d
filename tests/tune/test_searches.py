"""What is searched for one network or several, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels.space import Knob, Space
from kernels.workload import Separable, flops
from tune.mobilenet import MobileNet
from tune.pipeline.searches import Search, chosen, stage, weights

LARGE, SMALL = MobileNet(alpha=0.5, resolution=64), MobileNet(alpha=0.25, resolution=32)


def test_one_network_counts_its_layers() -> None:
    found = weights([LARGE.layers], fuses=False)
    layers = [layer.workload for layer in LARGE.layers]
    assert found == {workload: layers.count(workload) for workload in layers}
    fused = weights([LARGE.layers], fuses=True)
    assert {w: n for w, n in fused.items() if not isinstance(w, Separable)} == found
    assert sum(n for w, n in fused.items() if isinstance(w, Separable)) == len(LARGE.blocks)


def test_a_share_of_a_small_network_counts_as_much_as_of_a_large_one() -> None:
    found = weights([LARGE.layers, SMALL.layers], fuses=False)
    work = [sum(flops(layer.workload) for layer in model.layers) for model in (LARGE, SMALL)]
    for model, own in zip((LARGE, SMALL), work, strict=True):
        stem = model.layers[0].workload
        assert found[stem] * flops(stem) / work[0] == pytest.approx(flops(stem) / own)
    shared = {layer.workload for layer in LARGE.layers} & {layer.workload for layer in SMALL.layers}
    for workload in shared:
        alone = [weights([model.layers], fuses=False)[workload] for model in (LARGE, SMALL)]
        assert found[workload] == pytest.approx(alone[0] + alone[1] * work[0] / work[1])


def test_finals_are_in_a_network_that_has_the_workload() -> None:
    networks = [LARGE.layers, SMALL.layers]
    assert stage(networks, LARGE.layers[5].workload) is networks[0]
    assert stage(networks, SMALL.layers[-1].workload) is networks[1]


def test_two_layers_in_one_wait_for_the_two() -> None:
    depthwise, pointwise = (layer.workload for layer in SMALL.layers[1:3])
    together = Separable.of(depthwise, pointwise)
    assert together is not None
    searches = [
        Search(
            workload=workload,
            kernel="te.any",
            weight=1.0,
            space=Space(knobs=(Knob("A", tuple(range(99)), 0),), constraints=()),
            size=99,
            seeds=[],
        )
        for workload in (together, depthwise, pointwise)
    ]

    def next_one(*candidates: Search) -> Search | None:
        return chosen(candidates, peak_flops=1e11, most=96, worthwhile=0.001)

    fused, *apart = searches
    assert next_one(*searches) is apart[0]
    for search in apart:
        search.history += [({"A": number}, 1e-4) for number in range(8)]
    assert next_one(*searches) is fused
    fused.history += [({"A": number}, 9e-4) for number in range(8)]
    assert next_one(*searches) is apart[0]  # far behind, it is not worth more trials
    alone = replace(fused, history=[])
    assert next_one(alone) is alone  # where nobody searches the two
