"""What is searched for a set of networks, and where the next trials go."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from statistics import median

from kernels import KERNELS, kernel, kernels_for, least_flops
from kernels.space import Config, Space
from kernels.workload import Separable, Workload, flops, separables
from tune import database
from tune.database import Record, canonical
from tune.errors import UsageError
from tune.mobilenet import Layer
from tune.pipeline.recorder import Recorder
from tune.runners.protocol import Entry
from tune.scheduler import FIRST, Task, choose
from tune.search import expected_gain, propose
from tune.transfer import Known, similar

BATCH = 8  # trials of one search at most, before it learns from them; as many as it has had
FINALISTS = 6


@dataclass(kw_only=True)
class Search:
    """The state of the search for one workload with one kernel.

    open        whether it may go on
    anchor      what says, measured anew, what those measured long ago would take now: their fastest
    older       entries of the history that were measured long ago
    expected_s  seconds that it should take by what similar places tell, None when they tell nothing
    """

    workload: Workload
    kernel: str
    open: bool = True
    anchor: Config | None = None
    older: int = 0
    expected_s: float | None = None
    weight: float
    space: Space
    seeds: list[Config]
    history: list[tuple[Config, float | None]] = field(default_factory=list)

    @cached_property
    def size(self) -> int:
        """Configs that there are, counted when first asked for: the space may be large."""
        return sum(1 for _ in self.space)

    @property
    def trials(self) -> int:
        """Configs measured."""
        return len({tuple(sorted(config.items())) for config, _ in self.history})

    @property
    def first(self) -> int:
        """Trials before it is compared with others; none where something is expected of it."""
        return 0 if self.expected_s else self.attempts

    @property
    def attempts(self) -> int:
        """Failures before it is thought to run nothing."""
        return min(len(self.seeds), FIRST) or FIRST

    def best_s(self) -> float | None:
        return min((time_s for _, time_s in self.history if time_s is not None), default=None)

    def entry(self, config: Config) -> Entry:
        """One of its configs, to be measured."""
        return Entry(workload=self.workload, kernel=self.kernel, config=config)

    def learn(self, config: Config, time_s: float | None) -> None:
        """Know of a trial; one of the anchor changes the times of what was measured with it."""
        if config != self.anchor:
            self.history.append((config, time_s))
            return
        then = self.history[: self.older]
        then_s = next(known_s for known, known_s in then if known == config)
        if time_s and then_s:
            self.history[: self.older] = _at_pace(then, time_s / then_s)
        self.anchor = None


def weights(networks: Sequence[Sequence[Layer]], fuses: bool) -> dict[Workload, float]:
    """How often the networks have each workload, and each two in one where that can be told.

    What a smaller network has counts more often, as many times as all its work goes into the
    largest one's.
    """
    work = [sum(flops(layer.workload) for layer in layers) for layers in networks]
    total: defaultdict[Workload, float] = defaultdict(float)
    for layers, own_work in zip(networks, work, strict=True):
        single = [layer.workload for layer in layers]
        for workload in (*single, *(separables(single) if fuses else ())):
            total[workload] += max(work) / own_work
    return total


def stage(networks: Sequence[Sequence[Layer]], workload: Workload) -> Sequence[Layer]:
    """The first network that has the workload."""
    return next(layers for layers in networks if workload in weights([layers], fuses=True))


def searches_of(
    weights: Mapping[Workload, float],
    recorder: Recorder,
    only: Sequence[str] | None,
    *,
    since: str = "",
) -> list[Search]:
    """A search for each workload and kernel, with what the log already knows.

    only   the kernels to search, of which others may be rivals; UsageError for unknown ones
    since  when trials are not old, UTC, ISO 8601
    """
    check_kernels(only or ())
    target, threads = recorder.target, recorder.threads
    everywhere = Known(records=recorder.records, target=target, threads=threads)
    records: defaultdict[str, list[Record]] = defaultdict(list)
    for record in recorder.records:
        records[record.kernel].append(record)
    searches = []
    for workload, weight in weights.items():
        names = kernels_for(workload, target)
        searched = not only or any(name in only for name in names)
        expected = everywhere.standings(workload) if searched else {}
        for name in names:
            known = recorder.own(records[name], workload, name)
            open_ = not only or name in only
            if not open_ and not known:
                continue
            history, anchor, older = _caught_up(known, since)
            space = kernel(name).space(workload, target)
            near = open_ and similar(
                records[name], workload, name, space, target=target, threads=threads
            )
            seeds = [config for config, _ in near or ()]
            standing = expected.get(name)
            if open_ and standing is not None:
                first = space.nearest(standing.record.config)
                seeds = [first, *(config for config in seeds if config != first)]
            searches.append(
                Search(
                    workload=workload,
                    kernel=name,
                    open=open_,
                    anchor=anchor,
                    older=older,
                    expected_s=None if standing is None else standing.time_s,
                    weight=weight,
                    space=space,
                    seeds=seeds,
                    history=history,
                )
            )
    return searches


def _caught_up(
    records: Sequence[Record], since: str
) -> tuple[list[tuple[Config, float | None]], Config | None, int]:
    """History, anchor and older entries of a search with such records."""
    old = database.history(record for record in records if record.when < since)
    recent = database.history(record for record in records if record.when >= since)
    now = {canonical(config): time_s for config, time_s in recent}
    again = [(then_s, now.get(canonical(config))) for config, then_s in old]
    paces = [now_s / then_s for then_s, now_s in again if then_s and now_s]
    if paces:
        only_old = [entry for entry in old if canonical(entry[0]) not in now]
        return [*_at_pace(only_old, median(paces)), *recent], None, 0
    times = [(then_s, config) for config, then_s in old if then_s]
    anchor = min(times, key=itemgetter(0))[1] if times else None
    return [*old, *recent], anchor, len(old)


def _at_pace(
    history: Iterable[tuple[Config, float | None]], pace: float
) -> list[tuple[Config, float | None]]:
    """What was measured when the machine took so many times less."""
    return [(config, then_s and then_s * pace) for config, then_s in history]


def check_kernels(names: Iterable[str]) -> None:
    """UsageError for an unknown one."""
    for name in names:
        if name not in KERNELS:
            raise UsageError(
                f"kernel {name!r} is not known; expected one of {', '.join(KERNELS)}; "
                f"leave --kernel out for all"
            )


def batch(
    searches: Sequence[Search],
    peak_flops: float,
    most: int,
    worthwhile: float,
    *,
    at_once: int,
    left: int | None = None,
    seed: int = 0,
) -> dict[Entry, Search]:
    """What to measure next, and for which search; nothing when no search is worth its time.

    What these are compared with comes along, as far as `left` allows.

    most     trials of one search
    at_once  entries at least, if need be of the several searches that are worth most
    left     trials that may be made in all
    """
    enough = at_once if left is None else min(at_once, left)
    entries: dict[Entry, Search] = {}
    busy: list[Search] = []
    while len(entries) < enough:
        search = chosen(searches, peak_flops, most, worthwhile, busy)
        if search is None:
            break
        busy.append(search)
        alone = at_once // sum(one.open for one in searches)
        count = max(alone, min(BATCH, max(search.first, search.trials, 1)))
        count = count if left is None else min(count, left - len(entries))
        configs = propose(search.space, search.history, seed=seed, count=count, seeds=search.seeds)
        entries |= {search.entry(config): search for config in configs}
        for entry, other in _compared(search, searches, seed):
            if left is None or len(entries) < left:
                entries[entry] = other
    return entries


def _compared(
    search: Search, searches: Iterable[Search], seed: int
) -> Iterator[tuple[Entry, Search]]:
    """Anchors of the searches for the same, and of the two layers where it is two in one.

    Of a layer of which nothing has been measured, what is thought the best.
    """
    workload = search.workload
    parts = _parts(workload)
    ways: defaultdict[Workload, list[Search]] = defaultdict(list)
    for other in searches:
        if other.workload == workload or (other.open and other.workload in parts):
            ways[other.workload].append(other)
    for others in ways.values():
        for other in others:
            if other.anchor is not None:
                yield other.entry(other.anchor), other
    for part in parts:
        expected = [other for other in ways[part] if other.expected_s is not None]
        if expected and not any(other.history for other in ways[part]):
            other = min(expected, key=lambda one: one.expected_s or math.inf)
            for config in propose(other.space, (), seed=seed, count=1, seeds=other.seeds):
                yield other.entry(config), other


def _parts(workload: Workload) -> tuple[Workload, ...]:
    """The two layers, where it is two in one."""
    return (workload.depthwise, workload.pointwise) if isinstance(workload, Separable) else ()


def chosen(
    searches: Sequence[Search],
    peak_flops: float,
    most: int,
    worthwhile: float,
    busy: Sequence[Search] = (),
) -> Search | None:
    """The search where the networks can gain most, None when none is worth its time.

    most  trials of one search
    busy  searches that wait for trials already
    """
    searches = [search for search in searches if search.open]
    by_key = {f"{search.workload.key} {search.kernel}": search for search in searches}
    ways = _ways(searches)
    behind_s = _behind_s(ways)
    tasks = []
    for key, search in by_key.items():
        if any(search is one for one in busy):
            continue
        trials, workload = search.trials, search.workload
        best_s = ways[workload][search.kernel]
        rivals = [s for name, s in ways[workload].items() if name != search.kernel]
        parts = [ways[part] for part in _parts(workload)]
        if parts:
            apart_s = sum(min(part.values(), default=math.inf) for part in parts)
            if apart_s == math.inf and all(parts):
                continue  # until it is known what it has to beat
            rivals.append(apart_s)
        if workload in behind_s:
            rivals.append(min(ways[workload].values()) - behind_s[workload])
        floor_s = least_flops(search.kernel, workload) / peak_flops
        size = search.size if search.history else math.inf
        gain = expected_gain(search.history, space_size=size, floor_s=floor_s)
        tasks.append(
            Task(
                key=key,
                weight=search.weight,
                best_s=None if best_s == math.inf else best_s,
                rival_s=min(rivals, default=None),
                first=search.first,
                trials=trials,
                remaining=max(0, int(min(size, most)) - trials),
                gain=gain,
            )
        )
    task = choose(tasks, worthwhile=worthwhile)
    return None if task is None else by_key[task.key]


def _ways(searches: Sequence[Search]) -> defaultdict[Workload, dict[str, float]]:
    """Of each workload what its kernels take, seconds, as measured or else as is expected.

    Expectations are for another shape or machine: what was measured of the workload tells how far
    they are off, or else what was of others.
    """
    paces: defaultdict[Workload, list[float]] = defaultdict(list)
    for search in searches:
        best_s = search.best_s()
        if best_s is not None and search.expected_s is not None:
            paces[search.workload].append(best_s / search.expected_s)
    usual = median(pace for found in paces.values() for pace in found) if paces else 1.0
    ways: defaultdict[Workload, dict[str, float]] = defaultdict(dict)
    for search in searches:
        time_s = search.best_s()
        if time_s is None and search.expected_s is not None and search.trials < search.attempts:
            time_s = search.expected_s * min(paces.get(search.workload, [usual]))
        ways[search.workload][search.kernel] = math.inf if time_s is None else time_s
    return ways


def _behind_s(ways: defaultdict[Workload, dict[str, float]]) -> dict[Workload, float]:
    """Of layers that are faster in one with another, what they have to save to be so apart."""
    behind: defaultdict[Workload, list[float]] = defaultdict(list)
    for workload, times in list(ways.items()):
        parts = _parts(workload)
        apart_s = sum(min(ways[part].values(), default=math.inf) for part in parts)
        for part in parts if apart_s < math.inf else ():
            behind[part].append(apart_s - min(times.values()))
    return {part: min(found) for part, found in behind.items() if min(found) > 0}


def finalists(
    searches: Sequence[Search],
    recorder: Recorder,
    most: Callable[[int], int] = lambda remaining: FINALISTS,
) -> Iterator[list[tuple[Search, Config]]]:
    """Of each workload the few fastest and the last winner, if not all of them have met before.

    most  of the fastest, from how many workloads have yet to meet

    Those come first that networks spend most time on, but two layers in one right behind the two,
    with which it is compared: it meets them anew when one of them has another winner.
    """
    ways: defaultdict[Workload, list[Search]] = defaultdict(list)
    for search in searches:
        ways[search.workload].append(search)

    def spent_s(workload: Workload) -> float:
        return min((w.weight * (w.best_s() or math.inf) for w in ways[workload]), default=math.inf)

    def timed(workload: Workload) -> int:
        return sum(time_s is not None for way in ways[workload] for _, time_s in way.history)

    wanted = {
        workload
        for workload, found in ways.items()
        if any(way.open for way in found) and timed(workload) > 1
    }
    remaining = len(wanted)
    for workload in _by_block(sorted(ways, key=spent_s, reverse=True)):
        if workload not in wanted:
            continue
        finals = [record for record in recorder.records if record.stage == "final"]
        rivals = _rivals(workload, ways[workload], finals, recorder, most(remaining))
        remaining -= 1
        if len(rivals) > 1:
            yield rivals


def _by_block(workloads: Iterable[Workload]) -> dict[Workload, None]:
    """The same, but two layers in one right behind the two."""
    ordered: dict[Workload, None] = {}
    for workload in workloads:
        if isinstance(workload, Separable):
            ordered |= dict.fromkeys((workload.depthwise, workload.pointwise))
        ordered[workload] = None
    return ordered


def in_time(left_s: float, each_s: float, remaining: int) -> int:
    """How many rivals of each of the remaining workloads can meet; two at least, or none would.

    each_s  that a rival has taken so far
    """
    return max(2, min(FINALISTS, int(left_s / each_s / remaining)))


def _rivals(
    workload: Workload,
    ways: Sequence[Search],
    records: Sequence[Record],
    recorder: Recorder,
    most: int,
) -> list[tuple[Search, Config]]:
    """Those who shall meet; none when all have, as they are now."""
    ranked = sorted(
        (
            (time_s, index, config)
            for index, search in enumerate(ways)
            for config, time_s in search.history
            if time_s is not None
        ),
        key=lambda entry: entry[:2],
    )
    rivals = [(ways[index], config) for _, index, config in ranked[:most]]
    last = recorder.winner(records, workload)
    if last is not None:
        defender = next(way for way in ways if way.kernel == last.kernel), last.config
        rivals += [defender] * (defender not in rivals)
    met = [
        (search.kernel, record.config)
        for search in ways
        for record in recorder.own(records, workload, search.kernel)
        if record.seconds
    ]
    fresh = any(search.open and (search.kernel, config) not in met for search, config in rivals)
    return rivals if fresh or _outdated(workload, last, records, recorder) else []


def _outdated(
    workload: Workload, last: Record | None, records: Sequence[Record], recorder: Recorder
) -> bool:
    """Whether one of two layers has had a final since they met the two in one."""
    if last is None or not isinstance(workload, Separable):
        return False
    parts = (recorder.winner(records, part) for part in (workload.depthwise, workload.pointwise))
    return any(part and part.when > last.when for part in parts)
