"""Into how many tasks a config splits a CPU kernel's work: data, without TVM.

A task is a turn of a parallel loop. A loop runs over a grid of tasks, the columns of a row next to
one another, and TVM gives each thread as many turns as any, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from kernels.space import Config, Space, blocks
from kernels.workload import Conv, Depthwise, Head, Pointwise, Separable, Workload

# Knobs that change a grid, but not what is done to a tile nor how often anything is computed.
SPLITS = ("BLOCK_HO", "BLOCK_CI", "CHUNK", "ROWS")
EVEN = 1.1  # as much as a thread may have of what it would have if all had as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Tasks of one loop.

    rows     parts of the images' pixels
    columns  parts of the output channels
    whole    whether a task reads all channels of its pixels, or those of its column alone
    """

    rows: int
    columns: int
    whole: bool

    @property
    def tasks(self) -> int:
        return self.rows * self.columns

    def most(self, threads: int) -> int:
        """Tasks of the thread that has the most."""
        return blocks(self.tasks, threads)

    def read(self, threads: int) -> float:
        """The part of all input that one thread reads; of several the one that reads most."""
        each = self.most(threads)
        if not self.whole:
            return each / self.tasks
        firsts = range(0, self.tasks, each)
        lasts = (min(first + each, self.tasks) - 1 for first in firsts)
        touched = (
            last // self.columns - first // self.columns + 1
            for first, last in zip(firsts, lasts, strict=True)
        )
        return max(touched) / self.rows


def together(config: Config) -> int:
    """Register tiles of BLOCK_P pixels that a tile has, one above the other."""
    return 1 << int(config.get("LEVELS", 0))


def task_pixels(workload: Pointwise, config: Config) -> int:
    """Pixels of a task but the last: CHUNK tiles of BLOCK_P.

    Where 2**LEVELS of these are a tile, CHUNK of them at most: tasks are nearly even, in whole rows
    of such a tile, and one task may have a few pixels more than there are.
    """
    tiles = together(config)
    pixels = int(config["CHUNK"]) * int(config["BLOCK_P"]) * tiles
    if tiles > 1:
        tasks = blocks(workload.pixels, pixels)
        pixels = blocks(workload.pixels, tasks * tiles) * tiles
    return pixels


def grids(workload: Workload, config: Config) -> tuple[Grid, ...]:
    """The loops of the kernel for CPUs that `config` is for."""

    def knob(name: str) -> int:
        return int(config[name])

    match workload:
        case Conv():
            rows = workload.N * workload.Ho // int(config.get("BLOCK_HO", 1))
            return (Grid(rows=rows, columns=1, whole=True),)
        case Depthwise():
            rows = workload.N * blocks(workload.Ho, knob("BLOCK_HO"))
            columns = blocks(workload.C, knob("BLOCK_C"))
            return (Grid(rows=rows, columns=columns, whole=False),)
        case Pointwise():
            rows = blocks(workload.pixels, task_pixels(workload, config))
            columns = int(config.get("PARTS", blocks(workload.Co, knob("BLOCK_CO"))))
            return (Grid(rows=rows, columns=columns, whole=True),)
        case Separable():
            rows = workload.N * workload.Ho // knob("ROWS")
            return (Grid(rows=rows, columns=knob("PARTS"), whole=True),)
        case Head():
            pooled = workload.Ci // knob("BLOCK_CI")
            images = workload.N // knob("BLOCK_N")
            columns = blocks(workload.Co, knob("BLOCK_CO"))
            dense = Grid(rows=images, columns=columns, whole=True)
            return Grid(rows=workload.N, columns=pooled, whole=False), dense


def unevenness(workload: Workload, config: Config, threads: int) -> float:
    """How many times as much the busiest thread has as it would if all had alike."""
    found = grids(workload, config)
    return max(threads * grid.most(threads) / grid.tasks for grid in found)


def shared(workload: Workload, config: Config, space: Space, threads: int) -> Config:
    """The config, in tasks that so many threads can share.

    As it is where none has much more than others; else split so that they have alike, into the
    fewest tasks of those.
    """

    def most(config: Config) -> float:
        return unevenness(workload, config, threads)

    def tasks(config: Config) -> int:
        return sum(grid.tasks for grid in grids(workload, config))

    if most(config) <= EVEN:
        return config
    free = [knob for knob in space.knobs if knob.name in SPLITS]
    splits = (
        config | {knob.name: value for knob, value in zip(free, values, strict=True)}
        for values in product(*(knob.choices for knob in free))
    )
    candidates = [config, *(one for one in splits if one in space)]
    return min(candidates, key=lambda one: (max(EVEN, most(one)), tasks(one)))
