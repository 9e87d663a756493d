"""How long a network takes on more cores than anybody has measured: a model, no clock.

One kernel on T threads takes

    even + uneven + memory + exchange + fork and join

even      what it takes on one thread in the network, as recorded, by T
uneven    the thread with the most tasks has ceil(tasks / T) of them, so much longer it works; TVM
          splits a parallel loop once, and no thread takes over another's turns
memory    what its weights take from memory, which all cores share, beyond the two above: they come
          while the cores compute; those that one core alone reads faster than memory gives lie in
          a cache
exchange  of the input that a thread reads, a part of 1 - 1/T was written by other cores
fork      TVM's launching thread hands the task to one thread after the other, and every one takes
          its turn at one counter when it is done: so much for each thread beyond the first, more
          for those behind another L3, for each parallel loop

and an inference is the sum over its kernels, for each waits for the one before it. With a network
of its own in each core nothing is forked, uneven or exchanged: a core takes what it takes alone,
but all read their weights from memory at once.

What the model leaves out: clocks that fall when more cores work, two threads on one core, caches
that keep the weights between two inferences, and that a batch reads them only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod

from kernels.te.tasks import Grid
from kernels.workload import ITEM_BYTES, Head, Workload, flops, weight_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """What cores share and what it costs them.

    fork_join_s         of one parallel loop, for each thread beyond the first
    far_fork_join_s     the same for each thread whose core has another L3 than the first one's
    near_bytes_per_s    of what another core wrote: bytes by the seconds that reading them takes
                        more than if the reader had written them
    far_bytes_per_s     the same where the other core has another L3
    cores_per_l3        that share one
    core_bytes_per_s    from memory to one core
    memory_bytes_per_s  from memory to all of them together, at most
    """

    fork_join_s: float = 0.8e-6
    far_fork_join_s: float = 1.4e-6
    near_bytes_per_s: float = 28e9
    far_bytes_per_s: float = 2.2e9
    cores_per_l3: int = 8
    core_bytes_per_s: float = 28e9
    memory_bytes_per_s: float = 460.8e9

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value!r}; expected a number above 0; measure it")

    def from_memory(self, threads: int) -> float:
        """Bytes/s that so many cores get together."""
        return min(threads * self.core_bytes_per_s, self.memory_bytes_per_s)

    def forked_s(self, threads: int) -> float:
        """Of one parallel loop that so many threads share."""
        near, far = self._others(threads)
        return near * self.fork_join_s + far * self.far_fork_join_s

    def exchange_s(self, read_bytes: float, threads: int) -> float:
        """Of one core, one of `threads`, that reads what all of them have written alike."""
        near, far = self._others(threads)
        slow = near / self.near_bytes_per_s + far / self.far_bytes_per_s
        return read_bytes * slow / threads

    def _others(self, threads: int) -> tuple[int, int]:
        """How many threads beside one share its L3, and how many do not."""
        near = min(threads, self.cores_per_l3) - 1
        return near, threads - 1 - near


# Where the defaults come from. znver4: two cores of a shared virtual machine, 2026-11-25. By
# `--probe`, beside other work, fork and join took 0.7 to 0.8 µs there, and 1.4 in the slow state of
# docs/performance.md; what the other core wrote came at 8 to 29 GB/s, and at 0.6 to 2.2. Of such
# ranges the network's records choose: on two threads they are met with 28 GB/s, and the first five
# depthwise layers, of which each core reads 2.2 MB that the other wrote, take 0.9 ms longer in the
# slow state.
SOURCES = {
    "fork_join_s": "measured, znver4",
    "far_fork_join_s": "assumed: what was measured on znver4 in its slow state",
    "near_bytes_per_s": "fitted to the records of znver4 on 2 threads; measured, 8 to 29",
    "far_bytes_per_s": "assumed: fitted to znver4 in its slow state; measured there, 0.6 to 2.2",
    "cores_per_l3": "assumed: a Zen 4's",
    "core_bytes_per_s": "measured, znver4, in huge pages",
    "memory_bytes_per_s": "assumed: an EPYC 9004's, 12 channels of DDR5-4800",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One kernel of a network.

    grids    its loops
    alone_s  what it takes on one thread, in the network
    """

    workload: Workload
    grids: tuple[Grid, ...]
    alone_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Of what a time consists, in seconds."""

    even_s: float = 0.0
    uneven_s: float = 0.0
    memory_s: float = 0.0
    exchange_s: float = 0.0
    fork_join_s: float = 0.0

    @property
    def seconds(self) -> float:
        return self.even_s + self.uneven_s + self.memory_s + self.exchange_s + self.fork_join_s


def terms(part: Part, threads: int, cores: Cores) -> Terms:
    """Of one kernel on so many threads."""
    even_s = part.alone_s / threads
    uneven_s = exchange_s = 0.0
    for grid, read_bytes, share in _loops(part):
        uneven_s += part.alone_s * share * (grid.most(threads) / grid.tasks - 1 / threads)
        exchange_s += cores.exchange_s(read_bytes * grid.read(threads), threads)
    memory_s = _fetched_bytes(part, cores) / cores.from_memory(threads)
    return Terms(
        even_s=even_s,
        uneven_s=uneven_s,
        memory_s=max(0.0, memory_s - even_s - uneven_s),
        exchange_s=exchange_s,
        fork_join_s=len(part.grids) * cores.forked_s(threads),
    )


def total(parts: Sequence[Part], threads: int, cores: Cores) -> Terms:
    """Of an inference on so many threads."""
    found = [asdict(terms(part, threads, cores)) for part in parts]
    return Terms(**{name: sum(each[name] for each in found) for name in asdict(Terms())})


def apiece_s(parts: Sequence[Part], threads: int, cores: Cores) -> float:
    """Of an inference on one thread while as many others, each with its own, do the same."""
    rate = cores.from_memory(threads) / threads
    return sum(max(part.alone_s, _fetched_bytes(part, cores) / rate) for part in parts)


def floor_s(workloads: Sequence[Workload], threads: int, cores: Cores, core_flops: float) -> float:
    """The least that the layers take: multiply-adds at every core's peak, or weights from memory.

    core_flops  multiply-add peak of one core, FLOP/s
    """
    return sum(
        max(
            flops(workload) / (threads * core_flops),
            weight_bytes(workload) / cores.from_memory(threads),
        )
        for workload in workloads
    )


def fastest(parts: Sequence[Part], most: int, cores: Cores) -> int:
    """The number of threads, of up to `most`, on which an inference takes least."""
    return min(range(1, most + 1), key=lambda threads: total(parts, threads, cores).seconds)


def _fetched_bytes(part: Part, cores: Cores) -> float:
    """Of its weights what may come from memory: no more than did in its time on one thread."""
    return min(weight_bytes(part.workload), part.alone_s * cores.core_bytes_per_s)


def _loops(part: Part) -> list[tuple[Grid, float, float]]:
    """Each loop, the bytes that all its tasks read of what others wrote, and its share of
    the kernel's time.
    """
    workload = part.workload
    x_bytes = ITEM_BYTES[workload.dtype] * prod(workload.x_shape)
    if not isinstance(workload, Head):
        (grid,) = part.grids
        return [(grid, x_bytes, 1.0)]
    pooling, dense = part.grids
    sums_bytes = 4 * workload.N * workload.Ci
    share = x_bytes / (x_bytes + weight_bytes(workload))  # both loops are as fast as memory
    return [(pooling, x_bytes, share), (dense, sums_bytes, 1 - share)]
