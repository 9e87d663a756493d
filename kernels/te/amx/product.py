"""The product of pixels and packed weights in tile registers, x86 with AMX.

Maths   float32, by six products of bfloat16, which err no more (`kernels.te.amx.pieces`). The tile
        unit multiplies 512 pairs of bfloat16 a cycle, where two vector units multiply 32 of
        float32: six products take three eighths of the time.
Shapes  wt (Co/BLOCK_CO,3*Ci/2,BLOCK_CO), two bfloat16 in the place of a float32: a register has 32
        channels of the input x 16 of the output, two of the former side by side; one piece of all
        registers of a block follows another, and 32 channels follow 32. bias (Co/BLOCK_CO,BLOCK_CO)
Tiling  A tile of BLOCK_P pixels x BLOCK_CO channels is summed in up to four registers, from the
        bias on; a step are 32 channels of the input. A block of weights stays in L2 while the
        task's pixels pass by, which lie there in pieces. Between its products the loop asks for the
        weights of the next step and the outputs that it will write, and for what PREFETCH of
        `kernels.te.avx.product` says.
        Registers have so many rows that the last one has the fewest empty ones; these see what lies
        behind the task's pixels, and nothing of it is left in y.
Limits  Ci is a multiple of 32, Co of 16; Linux 5.16 or later.
Source  own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, blocks
from kernels.te.amx import pieces
from kernels.te.amx.pieces import DEEP, LINE, PIECES, PRODUCTS, ROWS
from kernels.te.avx import product
from kernels.te.avx.product import Run, Task
from kernels.te.llvm.code import Code, isa_of, looped, moved
from kernels.te.tile import LINE_BYTES, pad_last
from kernels.workload import ITEM_BYTES, Pointwise
from targets.target import Target
from targets.x86 import AMX

REGISTERS = 8
WIDE = 16  # sums of float32 in a row of a register
REGISTER = ROWS * WIDE  # float32 in a register
UNIT = "@llvm.x86."  # whose functions are the tile unit's instructions
PERMISSION = "@septune_tiles = linkonce_odr hidden global i8 0"  # whether it was asked for
CALL = 'T.evaluate(T.call_extern("int32", "{name}"))'


def supports(workload: Pointwise, target: Target) -> bool:
    return (
        target.kind == "x86"
        and target.features >= AMX
        and workload.dtype == "float32"
        and workload.Ci % DEEP == 0
        and workload.Co % WIDE == 0
    )


def knobs(workload: Pointwise) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """Tiles that fit the registers, and what the loop asks for."""
    found = [
        (ROWS * down, WIDE * across)
        for down in range(1, min(REGISTERS, blocks(workload.pixels, ROWS)) + 1)
        for across in range(1, min(REGISTERS, workload.Co // WIDE) + 1)
        if down + across + down * across <= REGISTERS
    ]
    tall, wide = (tuple(sorted({tile[axis] for tile in found})) for axis in (0, 1))
    rows, columns = max(found, key=lambda tile: tile[0] * tile[1])
    [prefetch] = (knob for knob in product.LOOP if knob.name == "PREFETCH")
    return (
        (Knob("BLOCK_P", tall, rows), Knob("BLOCK_CO", wide, columns), prefetch),
        (Constraint("tile registers", lambda c: (c["BLOCK_P"], c["BLOCK_CO"]) in found),),
    )


def shapes(workload: Pointwise, config: Config) -> dict[str, tuple[int, ...]]:
    """Of wt and bias, packed."""
    columns = int(config["BLOCK_CO"])
    B = blocks(workload.Co, columns)
    return {"wt": (B, _depth(workload), columns), "bias": (B, columns)}


def packed(workload: Pointwise, config: Config, wt: Array, bias: Array) -> tuple[Array, Array]:
    """wt (Ci,Co) and bias (Co,) in these shapes, channels of the output padded with zeros."""
    columns = int(config["BLOCK_CO"])
    of_wt, of_bias = shapes(workload, config).values()
    apart = pieces.split(pad_last(wt, columns)).reshape(
        PIECES, workload.Ci // DEEP, DEEP // 2, 2, of_bias[0], columns // WIDE, WIDE
    )
    registers = np.ascontiguousarray(apart.transpose(4, 1, 0, 5, 2, 6, 3))
    biases = pad_last(bias.astype(np.float32), columns)
    return registers.view(np.float32).reshape(of_wt), biases.reshape(of_bias)


def calls(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    task: Task,
) -> str:
    """Statements as those of `product.calls`, of pixels that lie in pieces.

    Behind these ROWS - 1 more can be read.
    """
    rows = blocks(task.pixels, blocks(task.pixels, ROWS))
    registers = (int(config["BLOCK_P"]) // ROWS, int(config["BLOCK_CO"]) // WIDE)

    def code(down: Run, across: Run, ahead: int) -> tuple[str, str]:
        size = (down.size, across.size)
        return _code(workload, target, size, rows=rows, registers=registers, ahead=ahead)

    multiplied = product.tiled(
        {**config, "KEEP": "weights"},
        codes,
        code,
        task,
        down=product.runs("t", task.pixels, registers[0] * rows),
        channels=workload.Co // task.parts,
        turns=workload.Ci // DEEP,
        depth=_depth(workload),
        x=task.x,
    )
    (begin, codes[begin]), (end, codes[end]) = _begin(target, registers, rows), _end(target)
    return "\n".join([CALL.format(name=begin), multiplied, CALL.format(name=end)])


def operations(workload: Pointwise) -> int:
    """Of the vector units in the time that the products take."""
    return 2 * workload.macs * len(PRODUCTS) // 16


def _depth(workload: Pointwise) -> int:
    """Rows of a block of weights."""
    return PIECES * workload.Ci * 2 // ITEM_BYTES[workload.dtype]


def _begin(target: Target, registers: tuple[int, int], rows: int) -> tuple[str, str]:
    """Name and code of `int ()`, which says how many rows registers have.

    Linux wants a process to ask for the tile unit, once: arch_prctl(ARCH_REQ_XCOMP_PERM, 18).
    """
    down, across = registers
    code = Code(isa_of(target), "float32")
    code.lines = [
        "start:",
        "%asked = load atomic i8, ptr @septune_tiles monotonic, align 1",
        "%may = icmp ne i8 %asked, 0",
        "br i1 %may, label %configure, label %ask",
        "ask:",
        'call i64 asm sideeffect "syscall", "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory}"'
        "(i64 158, i64 4131, i64 18)",
        "store atomic i8 1, ptr @septune_tiles monotonic, align 1",
        "br label %configure",
        "configure:",
    ]
    code.outside.append(PERMISSION)
    heights = [rows] * (down * across + down) + [ROWS] * across
    code.call(f"{UNIT}ldtilecfg", ("ptr", code.constant(_configuration(heights))))
    return code.function(())


def _configuration(heights: list[int]) -> bytes:
    """What LDTILECFG reads: palette 1, bytes of a row and rows of each register."""
    widths = np.array([LINE_BYTES] * len(heights), "<u2").tobytes()
    return (bytes([1, *[0] * 15]) + widths).ljust(48, b"\0") + bytes(heights).ljust(16, b"\0")


def _end(target: Target) -> tuple[str, str]:
    """Name and code of `int ()`, after which a change of threads need not save the registers."""
    code = Code(isa_of(target), "float32")
    code.call(f"{UNIT}tilerelease")
    return code.function(())


def _code(
    workload: Pointwise,
    target: Target,
    tile: tuple[int, int],
    *,
    rows: int,
    registers: tuple[int, int],
    ahead: int,
) -> tuple[str, str]:
    """Name and code of `int (y, x, wt, bias, next)`, which makes a tile of (pixels, channels).

    rows       of a register
    registers  of pixels and of channels that a whole tile has
    ahead      elements from `next` on that a turn of the loop asks for
    """
    code = Code(isa_of(target), workload.dtype)
    turns, down, across = workload.Ci // DEEP, blocks(tile[0], rows), tile[1] // WIDE
    sums = {(m, n): m * registers[1] + n for m in range(down) for n in range(across)}
    of_x = [registers[0] * registers[1] + m for m in range(down)]
    of_wt = [registers[0] * registers[1] + registers[0] + n for n in range(across)]
    row_of_x = pieces.pixels(workload.Ci, code.lanes).pixel
    row_of_wt = REGISTER * registers[1]

    def load(register: int, pointer: str, elements: int, stride: int) -> None:
        place = ("ptr", code.behind(pointer, elements))
        code.call(f"{UNIT}tileloadd64", ("i8", register), place, ("i64", stride * code.item_bytes))

    code.lines = ["start:", f"%sums = alloca [{len(sums) * REGISTER} x float], align {LINE_BYTES}"]
    for (_, n), register in sums.items():
        load(register, "%bias", n * WIDE, 0)
    before, code.lines = code.lines, []
    due = blocks(tile[0], turns)  # pixels of y that a turn asks for
    steps = {"%x": PIECES * LINE, "%wt": PIECES * row_of_wt, "%next": ahead}
    steps["%y"] = due * workload.Co
    asked = list(_asked(steps, due, workload.Co, tile[1]))
    for number, (last, (of_pixel, of_weight)) in enumerate(pairwise(((-1, -1), *PRODUCTS))):
        if of_pixel != last[0]:
            for m, register in enumerate(of_x):
                load(register, "%x.now", m * rows * row_of_x + of_pixel * LINE, row_of_x)
        if of_weight != last[1]:
            for n, register in enumerate(of_wt):
                load(register, "%wt.now", of_weight * row_of_wt + n * REGISTER, WIDE)
        for (m, n), register in sums.items():
            factors = ("i8", of_x[m]), ("i8", of_wt[n])
            code.call(f"{UNIT}tdpbf16ps", ("i8", register), *factors)
        for one in asked[number :: len(PRODUCTS)]:
            code.ask_at(*one)
    phis = [("i32", "%turn", str(turns), "%left"), *moved(code, steps)]
    code.lines = [*before, *looped(phis, code.lines)]
    for place, register in enumerate(sums.values()):
        address = ("ptr", code.behind("%sums", place * REGISTER))
        code.call(f"{UNIT}tilestored64", ("i8", register), address, ("i64", LINE_BYTES))
    _store(code, workload, tile, rows)
    return code.function(("ptr %y", "ptr %x", "ptr %wt", "ptr %bias", "ptr %next"))


def _asked(
    steps: dict[str, int], pixels: int, row_of_y: int, channels: int
) -> Iterator[tuple[str, int, str]]:
    """What a turn asks for: pointer, elements behind it, and where the line shall be.

    steps  of pointers in a turn
    """
    yield from (("%next.now", element, "L2") for element in range(0, steps["%next"], LINE))
    yield from (("%wt.now", steps["%wt"] + at, "L1") for at in range(0, steps["%wt"], LINE))
    for pixel in range(pixels):
        for channel in range(0, channels, LINE):
            yield "%y.now", pixel * row_of_y + channel, "ours"


def _store(code: Code, workload: Pointwise, tile: tuple[int, int], rows: int) -> None:
    """Lines that store a tile of y, of %sums, which has all registers one after the other."""
    pixels, channels = tile
    for pixel in range(pixels):
        m, row = divmod(pixel, rows)
        for channel in range(0, channels, code.lanes):
            n, lane = divmod(channel, WIDE)
            register = m * (channels // WIDE) + n
            value = code.load_at("%sums", register * REGISTER + row * WIDE + lane)
            done = code.activate(value, workload.activation)
            code.store(done, code.behind("%y", pixel * workload.Co + channel))
