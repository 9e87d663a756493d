"""An artifact, built when none is given, and all that it needs, as one folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from targets.target import Target
from tune.builder import linker
from tune.errors import UsageError
from tune.mobilenet import MobileNet
from tune.package import package as write
from tune.pipeline.building import build, device_of
from tune.pipeline.records import Log
from tune.runtime import read_manifest

NAME = "mobilenet_v1.so"  # of a library that is built for the package


def package(
    library: Path, kind: str, folder: Path, *, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The `package.Package` of `library`, written at `folder`, as data.

    kind  of machine that the library is for: UsageError when it is for another
    """
    manifest = read_manifest(library)
    made_for = manifest["target"]
    if made_for["kind"] != kind:
        raise UsageError(
            f"{library} was built for {made_for['kind']}; expected {kind}, as --target says; "
            f"pass --target {made_for['kind']}"
        )
    target = device_of(manifest, library)
    link = linker(target)
    try:
        return asdict(write(library, manifest, target, link, folder, progress=progress))
    except OSError as error:
        raise UsageError(
            f"cannot write {folder}: {error.strerror}; expected a writable path; choose another -o"
        ) from None


def build_package(
    model: MobileNet,
    target: Target,
    log: Log,
    *,
    threads: int,
    weights: Path | None,
    seed: int,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """`package` of a library that is built from the log for it."""
    with tempfile.TemporaryDirectory(prefix="septune-") as name:
        library = Path(name) / NAME
        progress("building the library from the log")
        build(model, target, log, threads=threads, weights=weights, seed=seed, output=library)
        return package(library, target.kind, folder, progress=progress)
