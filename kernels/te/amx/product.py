"""The product of pixels and packed weights in tile registers, x86 with AMX.

Maths   float32, by six products of bfloat16 that lose nothing of it (`kernels.te.amx.parts`). A tile
        register multiplies 512 pairs of bfloat16 a cycle, where two vector units multiply 32 of
        float32: six products are 2.7 times as fast.
Shapes  wt (Co/BLOCK_CO,3*Ci/2,BLOCK_CO), two bfloat16 in the place of one float32: a register holds
        32 channels of the input x 16 of the output, two of the former side by side; one part of all
        registers of a block follows another, and 32 channels follow 32. bias (Co/BLOCK_CO,BLOCK_CO)
Tiling  BLOCK_P pixels x BLOCK_CO channels are summed in up to four registers, from the bias on; a
        step are 32 channels of the input. Pixels are laid out first, by parts and registers: those
        of the whole task, or, where KEEP is pixels, of a tile. KEEP and PREFETCH are those of
        `kernels.te.avx.product`.
        Registers have as many rows as leaves the last one the fewest empty ones.
Limits  Ci is a multiple of 32, Co of 16.
Source  own; Intel, "64 and IA-32 Architectures Optimization Reference Manual", chapter on AMX, for
        how many loads a product can have beside it.
"""

from __future__ import annotations

from textwrap import indent

import numpy as np

from kernels.reference import Array
from kernels.space import Config, Constraint, Knob, blocks
from kernels.te.amx.parts import PARTS, PRODUCTS, parts, store_parts
from kernels.te.avx import product
from kernels.te.avx.product import Run, Task
from kernels.te.llvm.code import Code, isa_of, looped
from kernels.te.tile import LINE_BYTES, pad_last
from kernels.workload import ITEM_BYTES, Pointwise
from targets.target import Target

FEATURES = {"amx_tile", "amx_bf16"}
REGISTERS, ROWS = 8, 16  # tile registers, and rows of one
WIDE = 16  # sums of float32 in a row
DEEP = 32  # bfloat16 in a row
ITEMS = ROWS * WIDE  # of four bytes in a register
STEP = PARTS * ITEMS  # of the pixels of a register, or of its weights, for DEEP channels
UNIT = "@llvm.x86."  # whose functions are the tile unit's instructions
PERMISSION = "@septune_tiles = linkonce_odr hidden global i8 0"  # whether it was asked for
BUFFER = 's = T.sblock_alloc_buffer(({items},), "float32")\n'
CALL = 'T.evaluate(T.call_extern("int32", "{name}"))'
LAY_OUT = """
for r in range({pixels}):
    T.evaluate(
        T.call_extern(
            "int32",
            "{name}",
            s.access_ptr("w", offset={first} + r // {rows} * {register} + r % {rows} * {wide}),
            {x},
            wt.access_ptr("r", offset={block} + r * {ahead}),
        )
    )
"""


def supports(workload: Pointwise, target: Target) -> bool:
    return (
        target.features >= FEATURES
        and workload.dtype == "float32"
        and workload.Ci % DEEP == 0
        and workload.Co % WIDE == 0
    )


def knobs(workload: Pointwise) -> tuple[tuple[Knob, ...], tuple[Constraint, ...]]:
    """Tiles that fill the registers, and in which order they come."""
    found = [
        (ROWS * down, WIDE * across)
        for down in (1, 2, 3)
        for across in (1, 2, 3)
        if down + across + down * across <= REGISTERS
        and (down == 1 or down <= blocks(workload.pixels, ROWS))
        and across <= workload.Co // WIDE
    ]
    tall, wide = (tuple(sorted({tile[axis] for tile in found})) for axis in (0, 1))
    rows, columns = max(found, key=lambda tile: (tile[0] * tile[1], -abs(tile[0] - tile[1])))
    _, *order = product.LOOP
    return (
        (Knob("BLOCK_P", tall, rows), Knob("BLOCK_CO", wide, columns), *order),
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
    apart = parts(pad_last(wt, columns)).reshape(
        PARTS, workload.Ci // DEEP, DEEP // 2, 2, of_bias[0], columns // WIDE, WIDE
    )
    registers = np.ascontiguousarray(apart.transpose(4, 1, 0, 5, 2, 6, 3))
    biases = pad_last(bias.astype(np.float32), columns)
    return registers.view(np.float32).reshape(of_wt), biases.reshape(of_bias)


def buffers(workload: Pointwise, config: Config, pixels: int) -> str:
    """Statements: room for the parts of so many pixels, or of a tile's, if these are kept."""
    count = blocks(pixels, ROWS)
    if config["KEEP"] == "pixels":
        count = min(count, int(config["BLOCK_P"]) // ROWS)
    return BUFFER.format(items=count * _register(workload))


def calls(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    task: Task,
) -> str:
    """Statements as those of `product.calls`, and before them those that lay out the pixels."""
    columns, rows = int(config["BLOCK_CO"]), rows_of(task.pixels)
    down = product.runs("t", task.pixels, int(config["BLOCK_P"]) // ROWS * rows)
    registers = (int(config["BLOCK_P"]) // ROWS, columns // WIDE)
    keep_pixels = config["KEEP"] == "pixels"
    s = "0" if keep_pixels else f"{{tile}} * {registers[0] * _register(workload)}"

    def lay_out(run: Run) -> str:
        return _lay_out(workload, config, target, codes, task, run, s.format(tile="t"))

    def code(pixels: Run, channels: Run, ahead: int) -> tuple[str, str]:
        size = (pixels.size, channels.size)
        return _code(workload, target, size, rows=rows, registers=registers, ahead=ahead)

    multiplied = product.tiled(
        config,
        codes,
        code,
        task,
        down=down,
        channels=workload.Co // task.parts,
        turns=workload.Ci // DEEP,
        depth=_depth(workload),
        x=f's.access_ptr("r", offset={s})',
        before=lay_out if keep_pixels else None,
    )
    if not keep_pixels:
        loops = (
            f"for t in range({run.start}, {run.stop}):\n{indent(lay_out(run), ' ' * 4)}"
            for run in down
        )
        multiplied = "\n".join([*loops, multiplied])
    ends = []
    for name, codes[name] in (_begin(target, registers, rows), _end(target)):
        ends.append(CALL.format(name=name))
    return "\n".join([ends[0], multiplied, ends[1]])


def rows_of(pixels: int) -> int:
    """Of each register of a task, one a pixel."""
    return blocks(pixels, blocks(pixels, ROWS))


def operations(workload: Pointwise) -> int:
    """What the products take, in operations of the vector units in the same time."""
    return 2 * workload.macs * len(PRODUCTS) // 16


def _depth(workload: Pointwise) -> int:
    """Rows of a block of weights."""
    return PARTS * workload.Ci * 2 // ITEM_BYTES[workload.dtype]


def _register(workload: Pointwise) -> int:
    """Items of the pixels of a register."""
    return workload.Ci // DEEP * STEP


def _lay_out(
    workload: Pointwise,
    config: Config,
    target: Target,
    codes: dict[str, str],
    task: Task,
    run: Run,
    first: str,
) -> str:
    """Statements that lay out the pixels of tile t, and ask for the first block of weights.

    first  item of s that they begin at, an expression
    """
    columns, turns = int(config["BLOCK_CO"]), workload.Ci // DEEP
    block = _depth(workload) * columns
    ahead = blocks(block, run.size * turns) if config["PREFETCH"] == "weights" else 0
    name, codes[name] = _row_laid_out(Code(isa_of(target), workload.dtype), turns, ahead)
    return LAY_OUT.strip().format(
        pixels=run.size,
        name=name,
        first=first,
        rows=rows_of(task.pixels),
        register=_register(workload),
        wide=WIDE,
        x=task.x.format(pixel=f"{run.first} + r"),
        block=f"{task.part} * {blocks(workload.Co // task.parts, columns) * block}",
        ahead=turns * ahead,
    )


def _row_laid_out(code: Code, turns: int, ahead: int) -> tuple[str, str]:
    """Name and code of `int (s, x, next)`, which lays out a pixel, DEEP channels a turn.

    s      its row in the first register
    ahead  items from `next` on that a turn asks for
    """
    pair = (code.load_at("%x.now", 0), code.load_at("%x.now", code.lanes))
    store_parts(code, pair, tuple(code.behind("%s.now", part * ITEMS) for part in range(PARTS)))
    code.ask("%next.now", ahead)
    phis = [("i32", "%turn", str(turns), "%left")]
    for name, items in {"%s": STEP, "%x": DEEP, "%next": ahead}.items():
        phis.append(("ptr", f"{name}.now", name, code.behind(f"{name}.now", items)))
    code.loop(phis, before=[], turn=code.lines, after=[])
    return code.function(("ptr %s", "ptr %x", "ptr %next"))


def _begin(target: Target, registers: tuple[int, int], rows: int) -> tuple[str, str]:
    """Name and code of `int ()`, which says how many rows registers have.

    Linux wants a process to ask for the tile unit, once: arch_prctl(ARCH_REQ_XCOMP_PERM, 18).
    """
    down, across = registers
    heights = [rows] * (down * across + down) + [ROWS] * across
    code = Code(isa_of(target), "float32")
    code.lines = [
        "start:",
        "%asked = load i8, ptr @septune_tiles",
        "%may = icmp ne i8 %asked, 0",
        "br i1 %may, label %configure, label %ask",
        "ask:",
        'call i64 asm sideeffect "syscall", "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory}"'
        "(i64 158, i64 4131, i64 18)",
        "store i8 1, ptr @septune_tiles",
        "br label %configure",
        "configure:",
    ]
    code.outside.append(PERMISSION)
    code.call(f"{UNIT}ldtilecfg", ("ptr", code.constant(_configuration(heights))))
    return code.function(())


def _configuration(heights: list[int]) -> bytes:
    """What LDTILECFG reads: palette 1, bytes of a row and rows of each register."""
    widths = np.array([LINE_BYTES] * len(heights), "<u2").tobytes()
    return (bytes([1, *[0] * 15]) + widths).ljust(48, b"\0") + bytes(heights).ljust(16, b"\0")


def _end(target: Target) -> tuple[str, str]:
    """Name and code of `int ()`, after which registers need not be saved when threads change."""
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
    ahead      items from `next` on that a turn of the loop asks for
    """
    code = Code(isa_of(target), workload.dtype)
    pixels, turns = tile[0], workload.Ci // DEEP
    down, across = blocks(pixels, rows), tile[1] // WIDE
    sums = {(m, n): m * registers[1] + n for m in range(down) for n in range(across)}
    x_registers = [registers[0] * registers[1] + m for m in range(down)]
    wt_registers = [registers[0] * registers[1] + registers[0] + n for n in range(across)]

    def load(register: int, pointer: str, items: int, stride: int = LINE_BYTES) -> None:
        place = ("ptr", code.behind(pointer, items))
        code.call(f"{UNIT}tileloadd64", ("i8", register), place, ("i64", stride))

    code.lines = ["start:", f"%sums = alloca [{len(sums) * ITEMS} x float], align {LINE_BYTES}"]
    for (_, n), register in sums.items():
        load(register, "%bias", n * WIDE, stride=0)
    before, code.lines = code.lines, []
    held: tuple[int, ...] = (-1, -1)
    for product_of in PRODUCTS:
        for m, register in enumerate(x_registers if product_of[0] != held[0] else ()):
            load(register, "%x.now", m * turns * STEP + product_of[0] * ITEMS)
        for n, register in enumerate(wt_registers if product_of[1] != held[1] else ()):
            load(register, "%wt.now", (product_of[1] * registers[1] + n) * ITEMS)
        for (m, n), register in sums.items():
            operands = (("i8", register), ("i8", x_registers[m]), ("i8", wt_registers[n]))
            code.call(f"{UNIT}tdpbf16ps", *operands)
        held = product_of
    code.ask("%next.now", ahead)
    phis = [("i32", "%turn", str(turns), "%left")]
    for name, items in {"%x": STEP, "%wt": registers[1] * STEP, "%next": ahead}.items():
        phis.append(("ptr", f"{name}.now", name, code.behind(f"{name}.now", items)))
    code.lines = [*before, *looped(phis, code.lines)]
    for place, register in enumerate(sums.values()):
        address = ("ptr", code.behind("%sums", place * ITEMS))
        code.call(f"{UNIT}tilestored64", ("i8", register), address, ("i64", LINE_BYTES))
    for pixel in range(pixels):
        m, row = divmod(pixel, rows)
        for n in range(across):
            value = code.load_at("%sums", (m * across + n) * ITEMS + row * WIDE)
            done = code.activate(value, workload.activation)
            code.store(done, code.behind("%y", pixel * workload.Co + n * WIDE))
    return code.function(("ptr %y", "ptr %x", "ptr %wt", "ptr %bias", "ptr %next"))
