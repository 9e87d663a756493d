"""One call of a kernel as data: the tensors that it is given, and its launches in their order."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Constant = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor in device memory, last axis contiguous, its first element on 16 bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of a function under `@triton.jit`.

    tensors    names of what its pointers point to, in the order of its first parameters
    constants  the value of each other parameter; sizes are among them, since code is made for one
               workload: divisions become shifts, and masks that always hold disappear. DEPENDENT,
               which a kernel has last, is not: whoever launches says whether it is launched so
    programs   how many run, in a grid of one axis
    resident   blocks that an SM's registers have to hold at once, the next launch's among them
    """

    kernel: Any
    tensors: tuple[str, ...]
    constants: Mapping[str, Constant]
    programs: int
    num_warps: int
    num_stages: int
    resident: int = 1

    def name(self, dtypes: Mapping[str, str]) -> str:
        """One that no other code has; a change of the source changes it, of a comment does not.

        dtypes  of the tensors by name
        """
        facts = (
            _sources(self.kernel),
            [dtypes[name] for name in self.tensors],
            sorted(self.constants.items()),
            self.num_warps,
            self.num_stages,
            *([self.resident] if self.resident > 1 else []),
        )
        digest = hashlib.sha256(repr(facts).encode()).hexdigest()
        return f"{self.kernel.__name__.strip('_')}_{digest[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """All of a kernel's work on one workload.

    arguments  x, weights, y
    scratch    tensors that hold what one launch leaves for the next
    """

    arguments: tuple[Tensor, ...]
    scratch: tuple[Tensor, ...] = ()
    launches: tuple[Launch, ...]

    @property
    def form(self) -> str:
        """All that is compiled and launched, as text: the same whatever compiles it."""
        launches = [
            (launch.name(self.dtypes), launch.tensors, launch.programs) for launch in self.launches
        ]
        return repr((self.arguments, self.scratch, launches))

    @property
    def dtypes(self) -> dict[str, str]:
        """Of every tensor by name."""
        return {tensor.name: tensor.dtype for tensor in (*self.arguments, *self.scratch)}


def _sources(kernel: Any) -> list[str]:
    """The text of a function and of those that it calls by name, without comments."""
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        tree = ast.parse(function.src)
        found[function.__name__] = ast.unparse(tree)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(found)
        near = (function.__globals__.get(name) for name in sorted(names))
        waiting += [other for other in near if hasattr(other, "src")]
    return [found[name] for name in sorted(found)]
