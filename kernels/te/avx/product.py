"""The product of pixels and packed weights in register tiles of straight code, x86.

Tiling  BLOCK_P pixels x BLOCK_CO channels are summed in registers, from the bias on, by a loop over
        all channels of the input; a step is BLOCK_P values, each loaded to all lanes, and a row of
        weights. KEEP says what stays while the other passes by: a block of weights, or a tile of
        pixels. Meanwhile the loop asks for what comes next, so that it is in L2 by then: PREFETCH
        is the next block of weights, or the input of the next task. What is left of pixels or
        channels are tiles of their own; too few pixels for that are shared by all tiles.
Limits  channels are whole vectors.
Source  own; for the register tile Goto and van de Geijn, "Anatomy of High-Performance Matrix
        Multiplication", 2008.

The loop is one, and short: a core that holds it in its queue of decoded instructions needs less
power, and has a higher clock for it (`docs/performance.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import NamedTuple

from kernels.space import Config, Constraint, Knob, blocks
from kernels.te.llvm.code import Code, isa_of, looped
from kernels.workload import Pointwise
from targets.target import Target

VECTORS = (1, 2, 3, 4)  # of channels a tile
CHAINS = 8  # sums that hide how long a multiply-add takes
WORTH_A_TRY = 1.1  # as a multiple of the least cost
LOOP = (
    Knob("UNROLL_CI", (2, 4), 2),
    Knob("KEEP", ("weights", "pixels"), "weights"),
    Knob("PREFETCH", ("none", "weights", "input"), "weights"),
)
CALL = """
T.evaluate(
    T.call_extern(
        "int32",
        "{name}",
        T.address_of(y[{pixel}, {channel}]),
        {x},
        T.address_of(wt[{block}, 0, 0]),
        T.address_of(bias[{block}, 0]),
        {next},
    )
)
"""


class Run(NamedTuple):
    """Tiles along an axis that are alike: the first, the one behind the last, and their size.

    first  index that a tile begins at, an expression
    """

    start: int
    stop: int
    size: int
    first: str


class Task(NamedTuple):
    """What a task multiplies, and where.

    pixels     of the task
    first      of them in y, an expression
    parts      of the channels, whole blocks of weights
    part       number of the task's, an expression
    x          address of one of its pixels, from its {pixel}
    following  address in the input of the next task, from an {offset}
    amount     elements of that input
    """

    pixels: int
    first: str
    parts: int
    part: str
    x: str
    following: str
    amount: int


# Of a tile, by row and vector of it.
Cells = dict[tuple[int, int], str]


class Operands(NamedTuple):
    """Where a loop reads: pixels, weights, and what it asks for."""

    x: str
    wt: str
    next: str


def knobs(workload: Pointwise, target: Target) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """Tiles that nearly fill the registers, or half of them, and in which order they come."""
    found = tiles(workload, target)
    rows, columns = found[0]
    tall, wide = (tuple(sorted({tile[axis] for tile in found})) for axis in (0, 1))
    return (
        (Knob("BLOCK_P", tall, rows), Knob("BLOCK_CO", wide, columns), *LOOP),
        (Constraint("register tile", lambda c: (c["BLOCK_P"], c["BLOCK_CO"]) in found),),
    )


def tiles(workload: Pointwise, target: Target) -> list[tuple[int, int]]:
    """(pixels, channels) of register tiles worth a try, the best first."""
    lanes, registers = isa_of(target).lanes(workload.dtype), target.cpu.vector_registers
    costs = {}
    for vectors in (count for count in VECTORS if count <= workload.Co // lanes):
        # Beside the sums a row of weights, and a value in all lanes.
        most = (registers - 1) // vectors - 1
        for rows in {min(rows, workload.pixels) for rows in (most, most - 1, blocks(most, 2))}:
            costs[rows, lanes * vectors] = _cost(workload, lanes, (rows, vectors))
    best = min(costs, key=lambda tile: costs[tile])
    others = [tile for tile, (cost, _) in costs.items() if cost <= WORTH_A_TRY * costs[best][0]]
    return sorted(others, key=lambda tile: tile != best)


def _cost(workload: Pointwise, lanes: int, tile: tuple[int, int]) -> tuple[int, int]:
    """What all tiles of (pixels, vectors) take for a channel of the input, and loads among it.

    Counted in multiply-adds, of which a core is taken to start as many a cycle as of loads.
    """
    rows, vectors = tile
    cost = loads = 0
    for down in heights(workload.pixels, rows, vectors):
        for across in runs("b", workload.Co // lanes, vectors):
            count = (down.stop - down.start) * (across.stop - across.start)
            loaded = down.size + across.size
            cost += count * max(down.size * across.size, loaded, CHAINS)
            loads += count * loaded
    return cost, loads


def parts(workload: Pointwise) -> tuple[int, ...]:
    """Choices of PARTS, tasks that share the channels of some pixels."""
    return tuple(count for count in (1, 2, 4) if workload.Co % count == 0)


def whole_parts(factors: Mapping[int, Pointwise]) -> Constraint:
    """That each of PARTS has as many whole blocks of weights, of what is multiplied by LEVELS."""

    def whole(config: Config) -> bool:
        channels = factors[int(config.get("LEVELS", 0))].Co
        parts = int(config["PARTS"])
        return parts == 1 or channels % (int(config["BLOCK_CO"]) * parts) == 0

    return Constraint("whole parts", whole)


def shapes(workload: Pointwise, config: Config) -> dict[str, tuple[int, ...]]:
    """Of wt and bias, packed."""
    columns = int(config["BLOCK_CO"])
    B = blocks(workload.Co, columns)
    return {"wt": (B, workload.Ci, columns), "bias": (B, columns)}


def calls(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    task: Task,
) -> str:
    """Statements that make a task's part of y (P,Co); what they call is added to `codes`."""
    rows, columns = int(config["BLOCK_P"]), int(config["BLOCK_CO"])

    def code(down: Run, across: Run, ahead: int) -> tuple[str, str]:
        tile = (down.size, across.size)
        unrolled = int(config["UNROLL_CI"])
        return _code(workload, target, tile, columns=columns, unrolled=unrolled, ahead=ahead)

    return tiled(
        config,
        codes,
        code,
        task,
        down=heights(task.pixels, rows, columns // isa_of(target).lanes(workload.dtype)),
        channels=workload.Co // task.parts,
        turns=workload.Ci // int(config["UNROLL_CI"]),
        depth=workload.Ci,
        x=task.x,
    )


def tiled(
    config: Config,
    codes: dict[str, str],
    code: Callable[[Run, Run, int], tuple[str, str]],
    task: Task,
    *,
    down: Sequence[Run],
    channels: int,
    turns: int,
    depth: int,
    x: str,
    before: Callable[[Run], str] | None = None,
) -> str:
    """Statements that call the code of each tile, in the order that KEEP says.

    code      name and code for a tile of such pixels and channels, from how many elements it asks
              for a turn of its loops
    down      tiles along the pixels
    channels  of the task
    turns     of a tile's loops
    depth     rows of a block of weights
    x         arguments of a tile, from its first {pixel} and its number, {tile}
    before    statements before all tiles of some pixels, which are kept
    """
    columns = int(config["BLOCK_CO"])
    B, T = blocks(channels, columns), down[-1].stop
    block = f"{task.part} * {B} + b"
    following, amount = task.following, task.amount
    keep_weights = config["KEEP"] == "weights"
    number, steps = "0", 0
    match config["PREFETCH"]:
        case "weights":
            # A block passes by while so many tiles, or one, are made with the one before.
            number, steps = ("t", T * turns) if keep_weights else ("0", turns)
            amount = depth * columns
            next_block = f"{task.part} * {B} + (b + 1) % {B}"
            following = f'wt.access_ptr("r", offset=({next_block}) * {amount} + {{offset}})'
        case "input":
            number, steps = f"b * {T} + t" if keep_weights else f"t * {B} + b", T * B * turns
    ahead = blocks(amount, steps) if steps else 0

    def call(down: Run, across: Run) -> str:
        name, codes[name] = code(down, across, ahead)
        return CALL.strip().format(
            name=name,
            pixel=f"{task.first} + {down.first}",
            channel=f"({block}) * {columns}",
            x=x.format(pixel=down.first, tile="t"),
            block=block,
            next=following.format(offset=f"({number}) * {turns * ahead} % {amount}"),
        )

    def loops(*left: tuple[str, Sequence[Run]], runs: dict[str, Run]) -> Iterator[str]:
        """Loops over the tiles along each axis, those that are alike in one."""
        if not left:
            yield call(runs["t"], runs["b"])
            return
        (name, found), *others = left
        for run in found:
            yield f"for {name} in range({run.start}, {run.stop}):"
            if name == "t" and before:
                yield indent(before(run), "    ")
            for text in loops(*others, runs=runs | {name: run}):
                yield indent(text, "    ")

    axes = [("b", runs("b", channels, columns)), ("t", list(down))]
    return "\n".join(loops(*(axes if keep_weights else reversed(axes)), runs={}))


def runs(name: str, size: int, block: int) -> list[Run]:
    """Whole tiles of so many, and one of what is left."""
    whole, left = divmod(size, block)
    found = [Run(0, whole, block, f"{name} * {block}")] if whole else []
    return found + [Run(whole, whole + 1, left, f"{name} * {block}")] * (left > 0)


def heights(pixels: int, rows: int, vectors: int) -> list[Run]:
    """Tiles of so many rows; all nearly as high where a last one would sum too little."""
    if not 0 < pixels % rows * vectors < CHAINS:
        return runs("t", pixels, rows)
    return evenly(pixels, blocks(pixels, rows))


def evenly(pixels: int, count: int) -> list[Run]:
    """So many tiles, all nearly as high."""
    least, more = divmod(pixels, count)
    higher = [Run(0, more, least + 1, f"t * {least + 1}")] if more else []
    return [*higher, Run(more, count, least, f"t * {least} + {more}")]


def _code(
    workload: Pointwise,
    target: Target,
    tile: tuple[int, int],
    *,
    columns: int,
    unrolled: int,
    ahead: int,
) -> tuple[str, str]:
    """Name and code of `int (y, x, wt, bias, next)`, which makes a tile of (pixels, channels).

    columns   of a block of weights, of which the tile may have fewer
    unrolled  channels of the input that a turn of the loop takes
    ahead     elements from `next` on that a turn asks for
    """
    code = Code(isa_of(target), workload.dtype)
    lanes, (rows, wide) = code.lanes, tile
    bias = [code.load_at("%bias", vector * lanes) for vector in range(wide // lanes)]
    code.lines = ["start:", *code.lines]
    sums = multiplied(
        code,
        {(row, vector): value for row in range(rows) for vector, value in enumerate(bias)},
        Operands("%x", "%wt", "%next"),
        stride=workload.Ci,
        columns=columns,
        channels=workload.Ci,
        unrolled=unrolled,
        ahead=ahead,
    )
    for (row, vector), value in sums.items():
        done = code.activate(value, workload.activation)
        code.store(done, code.behind("%y", row * workload.Co + vector * lanes))
    return code.function(("ptr %y", "ptr %x", "ptr %wt", "ptr %bias", "ptr %next"))


def multiplied(
    code: Code,
    sums: Cells,
    operands: Operands,
    *,
    stride: int,
    columns: int,
    channels: int,
    unrolled: int,
    ahead: int,
    weights: Callable[[str, int], str] | None = None,
    number: str = "",
    behind: str = "start",
) -> Cells:
    """`sums` and the products of so many channels, summed by a loop.

    stride         elements from a pixel to the next
    columns        from a row of weights to the next
    weights        the vector so many elements behind a row's address, loaded if not said otherwise
    number,behind  of the loop, see `looped`
    others         as in `_code`
    """
    weights = weights or code.load_at
    vectors = dict.fromkeys(vector for _, vector in sums)
    names = Operands(*(f"%{name}{number}.now" for name in ("x", "wt", "next")))
    before, code.lines = code.lines, []
    x, wt, following = names
    now = {(row, vector): f"%sum{number}{row}.{vector}" for row, vector in sums}
    phis = [(code.vector, now[cell], start) for cell, start in sums.items()]
    code.ask(following, ahead)
    if ahead:
        following = code.behind(following, ahead)
    for _ in range(unrolled):
        row_of_wt = [weights(wt, vector * code.lanes) for vector in vectors]
        for row in dict.fromkeys(row for row, _ in sums):
            factor = code.broadcast(x, row * stride)
            for vector in vectors:
                now[row, vector] = code.multiply_add(factor, row_of_wt[vector], now[row, vector])
        (x, wt), values = code.step(
            (code.behind(x, 1), code.behind(wt, columns)), list(now.values())
        )
        now = dict(zip(sums, values, strict=True))
    after = Operands(x, wt, following)
    pointers = list(zip(names, operands, after, strict=True))[: 3 if ahead else 2]
    code.lines = [
        *before,
        *looped(
            [
                ("i32", f"%turn{number}", str(channels // unrolled), f"%left{number}"),
                *(("ptr", *pointer) for pointer in pointers),
                *((*phi, value) for phi, value in zip(phis, now.values(), strict=True)),
            ],
            code.lines,
            number=number,
            behind=behind,
        ),
    ]
    return now
