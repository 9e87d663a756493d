"""Whether kernels compute what they should on a GPU, each answer noted as soon as it is there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from kernels.version import version
from targets.target import Target
from tune import suite
from tune.pipeline.visit import Partial, Unfinished, Useless, Visit
from tune.runners.protocol import Entry

CHECKED_AT_ONCE = 32
# What a candidate is itself to blame for; other failures may be the machine's.
LASTING = ("invalid:", "wrong:")


class Key(NamedTuple):
    """What was checked: another version of a kernel is another kernel."""

    workload: str
    kernel: str
    version: str
    config: str


def correctness(target: Target, visit: Visit, journal: Path) -> dict[str, Any]:
    """How many candidates of the suite were checked, and which failed.

    One of each kernel goes first: Useless when none of them is right. Those that did not run are
    checked again by the next call, which Partial says.
    """
    from tune.runners.gpu import GpuRunner

    found = _found(journal)
    entries = {_key(entry, target): entry for entry in suite.entries(target)}
    fresh = [key for key in entries if key not in found]
    first = {(key.kernel, entries[key].workload.dtype): key for key in reversed(fresh)}
    fresh.sort(key=lambda key: key not in first.values())
    todo = fresh + [key for key in entries if key in found and not _settled(found[key])]
    with GpuRunner(target, builders=os.cpu_count() or 1) as runner:
        for start in range(0, len(todo), CHECKED_AT_ONCE):
            part = todo[start : start + CHECKED_AT_ONCE]
            for key, outcome in zip(part, runner.check([entries[k] for k in part]), strict=False):
                found[key] = outcome.error
                with journal.open("a") as file:
                    file.write(json.dumps([*key, outcome.error]) + "\n")
                if outcome.error:
                    visit.progress(f"  {key.kernel} {key.workload}: {outcome.error}")
                if visit.left_s() <= 0:
                    break
            if start < len(fresh):
                visit.went_on("correctness")
            checked = [found[key] for key in entries if key in found]
            if None not in checked and len(checked) >= min(len(entries), CHECKED_AT_ONCE):
                raise Useless(
                    f"none of {len(checked)} candidates is right on this machine, the last: "
                    f"{checked[-1]}; expected nearly all; mend what {journal} names, then run the "
                    f"same command again"
                )
            visit.progress(f"  {start + len(part)} of {len(todo)} candidates checked")
            if visit.left_s() <= 0:
                break
    if any(key not in found for key in entries):
        raise Unfinished
    failed = [(key, found[key]) for key in entries if found[key] is not None]
    result = {
        "checked": len(entries),
        "failed": [[key.workload, key.kernel, key.config, error] for key, error in failed],
    }
    if count := sum(not _settled(error) for _, error in failed):
        raise Partial(result, f"{count} candidates, which did not run")
    return result


def outdated(target: Target, journal: Path) -> bool:
    """Whether the suite has what the journal does not know, such as a kernel that was changed."""
    found = _found(journal)
    return any(_key(entry, target) not in found for entry in suite.entries(target))


def _settled(error: str | None) -> bool:
    return error is None or error.startswith(LASTING)


def _key(entry: Entry, target: Target) -> Key:
    return Key(
        workload=entry.workload.key,
        kernel=entry.kernel,
        version=version(entry.kernel, target.kind, entry.workload.dtype),
        config=json.dumps(entry.config, sort_keys=True),
    )


def _found(journal: Path) -> dict[Key, str | None]:
    """What is known of candidates, None for one that is right; a torn last line is not."""
    found: dict[Key, str | None] = {}
    for line in journal.read_text().splitlines() if journal.is_file() else ():
        try:
            *key, error = json.loads(line)
            found[Key(*key)] = error
        except (TypeError, ValueError):
            continue
    return found
