"""A short visit to a machine in steps, and the folder that remembers where it stands.

A step that has ended is not done again: whoever was interrupted makes the same visit once more. A
step that fails or is cut off is tried again then, and given up after MOST_TRIES without progress;
the others go on without it. What a step could only do in part is made whole after all the rest, in
another visit, or in the same one where the step itself has put it off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune.errors import SeptuneError, SetupError
from tune.runners.worker import WorkerCrash, WorkerError, WorkerTimeout

MOST_TRIES = 3
# What a step may raise: ours, a worker's, and of libraries that are missing or find no GPU.
FAILURES = (
    *(SeptuneError, WorkerError, WorkerCrash, WorkerTimeout),
    *(ImportError, LookupError, OSError, RuntimeError, ValueError),
)


class Unfinished(Exception):
    """The step went on and needs another visit to go on."""


class Partial(Exception):
    """The step has a result, which lacks something that another visit may bring."""

    def __init__(self, result: Any, lacks: str) -> None:
        super().__init__(lacks)
        self.result = result


class PutOff(Partial):
    """What the result lacks can be had in this visit, too, after all the rest."""


class Useless(SetupError):
    """No step can do its work on this machine: the visit ends."""


@dataclass(slots=True, kw_only=True)
class Visit:
    """Where it stands.

    deadline  of this call, on the clock of `time.monotonic`; None without
    tries     of each step so far, since it last went on
    ended     step -> None, or why it failed
    partial   step -> what its result lacks
    spent_s   of each network's time for tuning
    put_off   steps that have put something off in this call
    """

    folder: Path
    progress: Callable[[str], None]
    deadline: float | None
    tries: dict[str, int] = field(default_factory=dict)
    ended: dict[str, str | None] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    spent_s: dict[str, float] = field(default_factory=dict)
    put_off: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        path = self.folder / "state.json"
        if path.is_file():
            state = json.loads(path.read_text())
            self.tries, self.ended = state["tries"], state["ended"]
            self.partial, self.spent_s = state["partial"], state["spent_s"]

    def left_s(self) -> float:
        """Until this call has to end."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def take(self, steps: Sequence[tuple[str, Callable[[], Any]]]) -> list[str]:
        """Take all steps, by their names, that have not ended; which of them another call has to.

        Useless, as the step says that found it out.
        """
        order = sorted(steps, key=lambda step: step[0] in self.partial)
        left = {name for name, step in order if not self._ends(name, step)}
        put_off = [(name, step) for name, step in order if name in self.put_off]
        self.put_off.clear()
        left -= {name for name, step in put_off if self._ends(name, step)}
        return [name for name, _ in steps if name in left]

    def went_on(self, name: str) -> None:
        """A step did some of its work for good."""
        self.tries[name] = 0
        self._write()

    def keep(self, name: str, result: Any) -> None:
        """A step's result, whole or what there is of it."""
        write(self.folder / f"{name}.json", result)

    def reopen(self, names: Iterable[str]) -> None:
        """Steps that have to be taken again, since what they start from has become another."""
        for name in names:
            for memory in (self.tries, self.ended, self.partial):
                memory.pop(name, None)
        self._write()

    def _ends(self, name: str, step: Callable[[], Any]) -> bool:
        """Take a step unless it has ended; whether it has."""
        tries = self.tries.get(name, 0)
        if self.ended.get(name, "failed") is None:
            return True
        if tries >= MOST_TRIES:
            if name not in self.ended and name not in self.partial:
                self.ended[name] = f"cut off {tries} times"
                self._write()
            return True
        if self.left_s() <= 0:
            return False
        self.progress(f"{name} …")
        self.tries[name] = tries + 1
        self._write()
        start = time.monotonic()
        try:
            self.keep(name, step())
        except Unfinished:
            self.went_on(name)
            return False
        except Useless:
            self.went_on(name)
            raise
        except Partial as part:
            self.keep(name, part.result)
            self.partial[name] = str(part)
            self.ended.pop(name, None)
            outcome = f"lacks {part}"
            if isinstance(part, PutOff):
                self.tries[name] = 0
                self.put_off.append(name)
        except FAILURES as error:
            outcome = f"{type(error).__name__}: {error}"
            self.partial.pop(name, None)
            self.ended[name] = outcome
        else:
            outcome = "done"
            self.partial.pop(name, None)
            self.ended[name] = None
        self._write()
        self.progress(f"{name}: {outcome}, {time.monotonic() - start:.0f} s")
        return self.ended.get(name, "lacks") is None or self.tries[name] >= MOST_TRIES

    def _write(self) -> None:
        state = {
            "tries": self.tries,
            "ended": self.ended,
            "partial": self.partial,
            "spent_s": self.spent_s,
        }
        write(self.folder / "state.json", state)


def write(path: Path, value: Any) -> None:
    """As JSON, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)
