"""Records and weights in, the artifact out, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from kernels.reference import Array
from targets import machines
from targets.target import Endpoint, Target
from tune import images
from tune import weights as weights_module
from tune.builder import prepare
from tune.compile import compile_network, manifest, write_manifest
from tune.errors import UsageError
from tune.graph import assemble
from tune.mobilenet import MobileNet
from tune.pins import check_pins
from tune.pipeline.checking import require
from tune.pipeline.records import Log
from tune.plan import plan
from tune.runtime import load, read_manifest
from tune.weights import Weights, fold


def build(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    threads: int,
    weights: Path | None,
    seed: int,
    output: Path,
    input_dtype: str | None = None,
    require_tuned: bool = False,
    allow_estimates: bool = False,
) -> dict[str, Any]:
    """Write the library at `output` and its manifest, which is returned. Measures nothing.

    weights      a checkpoint; None takes the ImageNet one where it fits the model, else random ones
    input_dtype  of the images: uint8, or None for the model's own
    GateError as `checking.require` says when `require_tuned`.
    """
    check_pins()
    if output.suffix != ".so":
        raise UsageError(f"output {output} is no .so; expected a name such as mobilenet_v1.so")
    records = log.records(missing_ok=not require_tuned)
    choices = plan(model.layers, records, target, threads)
    if require_tuned:
        require(choices, records, target, log, threads=threads, allow_estimates=allow_estimates)
    prepare(target)
    folded = fold(weights_of(model, weights, seed), model)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):  # what cannot be written is told before it is made
            pass
        module = assemble(choices, folded, target, input_dtype)
        weights_bytes = compile_network(module, target, output)
        description = manifest(
            model,
            choices,
            folded,
            target,
            threads=threads,
            library=output,
            weights_bytes=weights_bytes,
            input_dtype=input_dtype,
        )
        write_manifest(description, output)
    except OSError as error:
        raise UsageError(
            f"cannot write {output}: {error.strerror}; expected a writable path; choose another -o"
        ) from None
    return description


def classify(
    library: Path,
    photos: Sequence[Path],
    threads: int | None = None,
    board: Endpoint | None = None,
    key: str = "",
) -> Iterator[tuple[Path, list[tuple[float, str]]]]:
    """Of each photo the five likeliest (probability, label), likeliest first.

    board  runs the network instead of this machine; `key`, as its tracker calls it
    """
    description = read_manifest(library)
    batch, height, _, _ = description["input"]["shape"]
    with ExitStack() as stack:
        if board is None:
            network: Callable[[Array], Array] = load(library, threads)
        else:
            network = stack.enter_context(_board_runner(description, board, key, threads, library))
        for photo in photos:
            image = images.read(photo, height, description["input"]["dtype"])
            logits = network(np.repeat(image, batch, axis=0))[0].astype(np.float64)
            odds = np.exp(logits - logits.max())
            probabilities = odds / odds.sum()
            names = images.labels()
            if len(names) != len(logits):
                names = tuple(f"class {index}" for index in range(len(logits)))
            top = np.argsort(-probabilities)[:5]
            yield photo, [(float(probabilities[index]), names[index]) for index in top]


@contextmanager
def _board_runner(
    description: dict[str, Any], board: Endpoint, key: str, threads: int | None, library: Path
) -> Iterator[Callable[[Array], Array]]:
    """The network on a board, as a function from images to logits."""
    from tune.runners.rpc import RpcRunner

    target = device_of(description, library)
    with RpcRunner(target, board, key=key, threads=threads or description["threads"]) as runner:
        yield lambda image: runner.infer(library, image)[0]


def network_in(library: Path, said: Mapping[str, Sequence[Any]]) -> MobileNet:
    """The network that a library computes, by its manifest.

    said  fields of a network, and the values that were asked for

    UsageError when the network has others, or when the manifest names none.
    """
    try:
        model = MobileNet(**read_manifest(library)["model"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"the manifest of {library} names no network that is known; expected what `build` "
            f"writes; build it again"
        ) from None
    for name, values in said.items():
        own = getattr(model, name)
        if own not in values:
            raise UsageError(
                f"{library} computes a network of {name} {own}; expected {values[0]}, as --{name} "
                f"says; leave --{name} out, or build another library"
            )
    return model


def device_of(description: dict[str, Any], library: Path) -> Target:
    """The device that a library was built for. UsageError when it is not known here."""
    made_for = description["target"]
    devices: dict[str, Target] = machines(made_for["kind"]).DEVICES
    if made_for["device"] not in devices:
        raise UsageError(
            f"{library} was built for {made_for['device']}, which is not known; expected one of "
            f"{', '.join(devices)}; build it again"
        )
    return devices[made_for["device"]]


def weights_of(model: MobileNet, path: Path | None, seed: int) -> Weights:
    """From the checkpoint at `path`, the ImageNet one, or at random."""
    source = path or weights_module.bundled(model)
    if source is None:
        return weights_module.random(model, seed)
    return weights_module.read(source, model)
