"""A Relax module in, the artifact out: one shared library, and a manifest beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kernels.reference import Array
from targets import machines
from targets.target import Target
from tune.builder import UNCHECKED, compiling, export
from tune.mobilenet import MobileNet
from tune.pins import PINS
from tune.plan import Choice

MANIFEST_FORMAT = 1
INPUT, OUTPUT = "image", "logits"  # names, as applications ask for them


def compile_network(module: Any, target: Target, path: Path) -> int:
    """Write the library of a whole network to `path`; bytes of the weights in it.

    On a GPU all launches are one graph, captured the first time. The image is checked where the
    network begins. SetupError when nothing can link it.
    """
    from tvm import relax

    passes = {"relax.backend.use_cuda_graph": target.kind == "cuda"} | UNCHECKED
    with compiling(target, passes):
        executable = relax.build(module, target=target.tvm())
    export(executable, target, path)
    return _weights_bytes(module)


def manifest(
    model: MobileNet,
    choices: Sequence[Choice],
    weights: Mapping[str, tuple[Array, Array]],
    target: Target,
    *,
    threads: int,
    library: Path,
    weights_bytes: int,
    input_dtype: str | None = None,
) -> dict[str, Any]:
    """What the library is, in plain data: enough to run it rightly and to tell how it was made."""
    content = library.read_bytes()
    digest = hashlib.sha256()
    for name in sorted(weights):
        for array in weights[name]:
            digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "format": MANIFEST_FORMAT,
        "model": asdict(model),
        "input": {
            "name": INPUT,
            "shape": list(model.input_shape),
            "dtype": input_dtype or model.dtype,
            "layout": "NHWC",
            "range": "RGB, 0 to 255" if input_dtype == "uint8" else "RGB, value / 127.5 - 1",
        },
        "output": {
            "name": OUTPUT,
            "shape": [model.batch, model.classes],
            "dtype": model.dtype,
        },
        "target": {
            "kind": target.kind,
            "device": target.device,
            "mcpu": target.mcpu,
            "features": sorted(machines(target.kind).instructions(target)),
        },
        "threads": threads,
        "tvm": PINS["apache-tvm"],
        "tvm_ffi": PINS["apache-tvm-ffi"],
        "library_bytes": len(content),
        "weights_bytes": weights_bytes,
        "library_sha256": hashlib.sha256(content).hexdigest(),
        "weights_sha256": digest.hexdigest(),
        "layers": [
            {
                "name": choice.name,
                "workload": choice.workload.key,
                "kernel": choice.kernel,
                "config": choice.config,
                "why": choice.why,
                "time_s": choice.time_s,
            }
            for choice in choices
        ],
    }


def manifest_path(library: Path) -> Path:
    """Where the manifest of a library lies: beside it, `.json` for `.so`."""
    return library.with_suffix(".json")


def write_manifest(description: dict[str, Any], library: Path) -> None:
    """Write the manifest beside `library`."""
    manifest_path(library).write_text(json.dumps(description, indent=1) + "\n")


def _weights_bytes(module: Any) -> int:
    """Bytes of all constants, as they are packed."""
    from tvm import relax
    from tvm.ir.expr import GenericConst

    sizes: list[int] = []

    def visit(expression: Any) -> None:
        if isinstance(expression, GenericConst):
            sizes.append(expression.value.numpy().nbytes)

    relax.analysis.post_order_visit(module["main"], visit)
    return sum(sizes)
