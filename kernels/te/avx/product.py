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

from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import NamedTuple

from kernels.space import Config, Constraint, Knob, blocks
from kernels.te.llvm.code import Code, isa_of
from kernels.te.tile import LINE_BYTES
from kernels.workload import ITEM_BYTES, Pointwise
from targets.target import Target

VECTORS = (1, 2, 3, 4)  # of channels a tile
CHAINS = 8  # sums that hide how long a multiply-add takes
WORTH_A_TRY = 1.1  # as a multiple of the least cost
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


def knobs(workload: Pointwise, target: Target) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """Tiles that nearly fill the registers, or half of them, and in which order they come."""
    lanes, registers = isa_of(target).lanes(workload.dtype), target.cpu.vector_registers
    costs = {}
    for vectors in (count for count in VECTORS if count <= workload.Co // lanes):
        # Beside the sums a row of weights, and a value in all lanes.
        most = (registers - 1) // vectors - 1
        for rows in {min(rows, workload.pixels) for rows in (most, most - 1, blocks(most, 2))}:
            costs[rows, lanes * vectors] = _cost(workload, lanes, (rows, vectors))
    best = min(costs, key=lambda tile: costs[tile])
    tiles = [tile for tile, (cost, _) in costs.items() if cost <= WORTH_A_TRY * costs[best][0]]
    return (
        (
            Knob("BLOCK_P", tuple(sorted({rows for rows, _ in tiles})), best[0]),
            Knob("BLOCK_CO", tuple(sorted({columns for _, columns in tiles})), best[1]),
            Knob("UNROLL_CI", (2, 4), 2),
            Knob("KEEP", ("weights", "pixels"), "weights"),
            Knob("PREFETCH", ("none", "weights", "input"), "weights"),
        ),
        (Constraint("register tile", lambda c: (c["BLOCK_P"], c["BLOCK_CO"]) in tiles),),
    )


def _cost(workload: Pointwise, lanes: int, tile: tuple[int, int]) -> tuple[int, int]:
    """What all tiles of (pixels, vectors) take for a channel of the input, and loads among it.

    Counted in multiply-adds, of which a core is taken to start as many a cycle as of loads.
    """
    rows, vectors = tile
    cost = loads = 0
    for down in heights(workload.pixels, rows, vectors):
        for across in _runs("b", workload.Co // lanes, vectors):
            count = (down.stop - down.start) * (across.stop - across.start)
            loaded = down.size + across.size
            cost += count * max(down.size * across.size, loaded, CHAINS)
            loads += count * loaded
    return cost, loads


def parts(workload: Pointwise) -> tuple[int, ...]:
    """Choices of PARTS, tasks that share the channels of some pixels."""
    return tuple(count for count in (1, 2, 4) if workload.Co % count == 0)


def whole_parts(workload: Pointwise) -> Constraint:
    """That each of PARTS has as many whole blocks of weights."""
    return Constraint(
        "whole parts",
        lambda c: c["PARTS"] == 1 or workload.Co % (int(c["BLOCK_CO"]) * int(c["PARTS"])) == 0,
    )


def calls(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    *,
    pixels: int,
    first: str,
    parts: int,
    part: str,
    x: str,
    following: str,
    amount: int,
) -> str:
    """Statements that make a task's part of y (P,Co); what they call is added to `codes`.

    pixels     of the task
    first      of them in y, an expression
    parts      of the channels, whole blocks of weights
    part       number of the task's, an expression
    x          address of one of its pixels, from its {pixel}
    following  address in the input of the next task, from an {offset}
    amount     elements of that input
    """
    rows, columns = int(config["BLOCK_P"]), int(config["BLOCK_CO"])
    channels = workload.Co // parts
    B, T = blocks(channels, columns), blocks(pixels, rows)
    keep_weights, turns = config["KEEP"] == "weights", workload.Ci // int(config["UNROLL_CI"])
    number, steps = "0", 0
    match config["PREFETCH"]:
        case "weights":
            # A block passes by while so many tiles, or one, are made with the one before.
            number, steps = ("t", T * turns) if keep_weights else ("0", turns)
            amount = workload.Ci * columns
            following = (
                f'wt.access_ptr("r", offset=({part} * {B} + (b + 1) % {B}) * {amount} + {{offset}})'
            )
        case "input":
            number, steps = f"b * {T} + t" if keep_weights else f"t * {B} + b", T * B * turns
    ahead = blocks(amount, steps) if steps else 0

    def call(down: Run, across: Run) -> str:
        name, codes[name] = _code(
            workload,
            target,
            (down.size, across.size),
            columns=columns,
            unrolled=int(config["UNROLL_CI"]),
            ahead=ahead,
        )
        block = f"{part} * {B} + b"
        return CALL.strip().format(
            name=name,
            pixel=f"{first} + {down.first}",
            channel=f"({block}) * {columns}",
            x=x.format(pixel=down.first),
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
            for text in loops(*others, runs=runs | {name: run}):
                yield indent(text, "    ")

    lanes = isa_of(target).lanes(workload.dtype)
    outer = ("b", _runs("b", channels, columns))
    inner = ("t", heights(pixels, rows, columns // lanes))
    if not keep_weights:
        outer, inner = inner, outer
    return "\n".join(loops(outer, inner, runs={}))


def _runs(name: str, size: int, block: int) -> list[Run]:
    """Whole tiles of so many, and one of what is left."""
    whole, left = divmod(size, block)
    runs = [Run(0, whole, block, f"{name} * {block}")] if whole else []
    return runs + [Run(whole, whole + 1, left, f"{name} * {block}")] * (left > 0)


def heights(pixels: int, rows: int, vectors: int) -> list[Run]:
    """Tiles of so many rows; all nearly as high where a last one would sum too little."""
    if not 0 < pixels % rows * vectors < CHAINS:
        return _runs("t", pixels, rows)
    count = blocks(pixels, rows)
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
    vectors = wide // lanes
    cells = [(row, vector) for row in range(rows) for vector in range(vectors)]
    starts = [code.load_at("%bias", vector * lanes) for vector in range(vectors)]
    before, code.lines = code.lines, []

    x, wt, following = "%x.now", "%wt.now", "%next.now"
    sums = {(row, vector): f"%sum{row}.{vector}" for row, vector in cells}
    line = LINE_BYTES // ITEM_BYTES[workload.dtype]
    for number in range(blocks(ahead, line)):
        code.prefetch(code.behind("%next.now", number * line))
    if ahead:
        following = code.behind("%next.now", ahead)
    for _ in range(unrolled):
        weights = [code.load_at(wt, vector * lanes) for vector in range(vectors)]
        for row in range(rows):
            factor = code.broadcast(x, row * workload.Ci)
            for vector in range(vectors):
                sums[row, vector] = code.multiply_add(factor, weights[vector], sums[row, vector])
        (x, wt), values = code.step(
            (code.behind(x, 1), code.behind(wt, columns)), list(sums.values())
        )
        sums = dict(zip(cells, values, strict=True))
    loop, code.lines = code.lines, []

    for (row, vector), value in sums.items():
        done = code.activate(value, workload.activation)
        code.store(done, code.behind("%y", row * workload.Co + vector * lanes))
    pointers = [("%x", x), ("%wt", wt), *([("%next", following)] if ahead else [])]
    phis = [("i32", "%turn", str(workload.Ci // unrolled), "%left")]
    phis += [("ptr", f"{name}.now", name, again) for name, again in pointers]
    phis += [
        (code.vector, f"%sum{row}.{vector}", starts[vector], sums[row, vector])
        for row, vector in cells
    ]
    code.loop(phis, before=before, turn=loop, after=code.lines)
    return code.function(("ptr %y", "ptr %x", "ptr %wt", "ptr %bias", "ptr %next"))
