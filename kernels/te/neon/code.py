"""Loops as LLVM's intermediate code: what TensorIR cannot say of NEON.

One instruction loads four registers and moves its address on, `ld1 {v0.4s-v3.4s}, [x0], #64`. LLVM
makes it of an intrinsic alone, whose struct no call in TensorIR can take apart, and moves the
address on only where it does not see that the next one is this one and a constant: an empty
statement of assembly code hides that. Another one takes all sums along, so that what comes before
ends before the next loads: LLVM 22 otherwise moves these up, to where no four registers in a row
are free, and spills.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import count

GROUP = 4  # registers that an instruction loads at most
LANES = {"float32": 4, "float16": 8}
ZERO, SIX = ("maxnum", 0), ("minnum", 6)
ELEMENTS = {"float32": ("float", "f32", 4), "float16": ("half", "f16", 2)}


class Code:
    """Instructions of a function's body, a line each; values are named as they come."""

    def __init__(self, dtype: str) -> None:
        self._element, suffix, self._align = ELEMENTS[dtype]
        self.vector = f"<{LANES[dtype]} x {self._element}>"
        self._suffix = f"v{LANES[dtype]}{suffix}"
        self.lanes = LANES[dtype]
        self._numbers = count()
        self.lines: list[str] = []

    def let(self, instruction: str) -> str:
        """The name of its value."""
        name = f"%v{next(self._numbers)}"
        self.lines.append(f"{name} = {instruction}")
        return name

    def behind(self, pointer: str, elements: int) -> str:
        """The address so many elements further on."""
        return self.let(f"getelementptr {self._element}, ptr {pointer}, i64 {elements}")

    def load(self, pointer: str, vectors: int) -> tuple[list[str], str]:
        """So many vectors, and the address behind them, which LLVM knows nothing of."""
        loaded: list[str] = []
        while len(loaded) < vectors:
            group = min(GROUP, vectors - len(loaded))
            if group == 1:
                loaded.append(self.let(f"load {self.vector}, ptr {pointer}, align {self._align}"))
            else:
                all_of = self._struct([self.vector] * group)
                name = f"@llvm.aarch64.neon.ld1x{group}.{self._suffix}.p0"
                value = self.let(f"call {all_of} {name}(ptr {pointer})")
                loaded += self._parts(all_of, value, group)
            following = self.behind(pointer, group * self.lanes)
            pointer = self.let(f'call ptr asm "", "=r,0"(ptr {following})')
        return loaded, pointer

    def load_at(self, pointer: str, elements: int) -> str:
        """The vector that begins so many elements further on."""
        address = self.behind(pointer, elements)
        return self.let(f"load {self.vector}, ptr {address}, align {self._align}")

    def hidden(self, elements: int) -> str:
        """The bytes of so many elements in a register, a number that LLVM does not know."""
        return self.let(f'call i64 asm "", "=r,0"(i64 {elements * self._align})')

    def advance(self, pointer: str, distance: str) -> str:
        """The address so many bytes further on."""
        return self.let(f"getelementptr i8, ptr {pointer}, i64 {distance}")

    def step(self, pointers: Sequence[str], sums: Sequence[str]) -> tuple[list[str], list[str]]:
        """The same once more, for what shall come after all that they are made of."""
        kinds = ["ptr"] * len(pointers) + [self.vector] * len(sums)
        outputs = ["=r"] * len(pointers) + ["=w"] * len(sums)
        constraints = ",".join([*outputs, *map(str, range(len(kinds)))])
        values = ", ".join(
            f"{kind} {name}" for kind, name in zip(kinds, [*pointers, *sums], strict=True)
        )
        all_of = self._struct(kinds)
        value = self.let(f'call {all_of} asm sideeffect "", "{constraints}"({values})')
        parts = self._parts(all_of, value, len(kinds))
        return parts[: len(pointers)], parts[len(pointers) :]

    def lane(self, value: str, number: int) -> str:
        """One lane of a vector in all lanes: no instruction where it is a factor."""
        splat = f"<{self.lanes} x i32> splat (i32 {number})"
        return self.let(f"shufflevector {self.vector} {value}, {self.vector} poison, {splat}")

    def multiply_add(self, one: str, other: str, added: str) -> str:
        """one * other + added."""
        values = ", ".join(f"{self.vector} {value}" for value in (one, other, added))
        return self.let(f"call {self.vector} @llvm.fma.{self._suffix}({values})")

    def activate(self, value: str, activation: str) -> str:
        """`value` after the activation."""
        for name, limit in {"none": (), "relu": (ZERO,), "relu6": (ZERO, SIX)}[activation]:
            bound = "zeroinitializer" if limit == 0 else f"splat ({self._element} {limit:e})"
            operands = f"{self.vector} {value}, {self.vector} {bound}"
            value = self.let(f"call {self.vector} @llvm.{name}.{self._suffix}({operands})")
        return value

    def store(self, value: str, pointer: str) -> None:
        self.lines.append(f"store {self.vector} {value}, ptr {pointer}, align {self._align}")

    def function(self, parameters: Sequence[str]) -> tuple[str, str]:
        """Name and code of a function, made a part of its caller, which returns 0.

        parameters  kind and name of each; the name of the function is the same for the same code
        """
        body = "\n".join(
            [f"({', '.join(parameters)}) alwaysinline {{", *self.lines, "ret i32 0", "}"]
        )
        name = f"septune_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
        head = f"define linkonce_odr hidden i32 @{name}"
        return name, "\n".join([head + body, *self._declarations()])

    def _declarations(self) -> list[str]:
        """Of the intrinsics."""
        arities = {"fma": 3, "maxnum": 2, "minnum": 2}
        return [
            f"declare {self.vector} @llvm.{name}.{self._suffix}({', '.join([self.vector] * arity)})"
            for name, arity in arities.items()
        ] + [
            f"declare {self._struct([self.vector] * group)} "
            f"@llvm.aarch64.neon.ld1x{group}.{self._suffix}.p0(ptr)"
            for group in range(2, GROUP + 1)
        ]

    def _struct(self, kinds: Sequence[str]) -> str:
        return f"{{ {', '.join(kinds)} }}"

    def _parts(self, all_of: str, value: str, number: int) -> list[str]:
        return [self.let(f"extractvalue {all_of} {value}, {i}") for i in range(number)]


def weight_steps(vectors: int, dtype: str) -> int:
    """For how many channels one load brings the weights, so many vectors for each."""
    steps = max(1, GROUP // vectors)
    return steps if LANES[dtype] % steps == 0 else 1


def tile(rows: int, vectors: int, unrolled: int, dtype: str, *, biased: bool) -> tuple[str, str]:
    """Name and code of `int (sums, x, wt, [bias,] turns)`: a register tile's loop.

    sums      (rows,vectors) of vectors
    x         by groups of a vector's channels: (…,rows) of vectors
    wt        by channels: (…,vectors) of vectors
    bias      as sums, what they start from; zero without
    unrolled  channels that one of `turns` sums; whole groups

    It shall become a part of its caller, where `sums` is on the stack and becomes registers.
    """
    code, lanes, each = Code(dtype), LANES[dtype], weight_steps(vectors, dtype)
    cells = range(rows * vectors)
    # One by one: loaded as a group they would have to stay in a row.
    starts = [
        code.load_at("%bias", cell * lanes) if biased else "zeroinitializer" for cell in cells
    ]
    before, code.lines = code.lines, []

    x, wt, sums = "%x.now", "%wt.now", [f"%sum{cell}" for cell in cells]
    for first in range(0, unrolled, each):
        if first:
            (x, wt), sums = code.step((x, wt), sums)
        if first % lanes == 0:
            pixels, x = code.load(x, rows)
        loaded, wt = code.load(wt, each * vectors)
        for k in range(each):
            for row in range(rows):
                factor = code.lane(pixels[row], first % lanes + k)
                for vector in range(vectors):
                    cell = row * vectors + vector
                    row_of_wt = loaded[k * vectors + vector]
                    sums[cell] = code.multiply_add(factor, row_of_wt, sums[cell])
    loop, code.lines = code.lines, []

    for cell in cells:
        code.store(sums[cell], code.behind("%sums", cell * lanes))
    phis = [("i32", "%turn", "%turns", "%left"), ("ptr", "%x.now", "%x", x)]
    phis += [("ptr", "%wt.now", "%wt", wt)]
    phis += [(code.vector, f"%sum{cell}", starts[cell], sums[cell]) for cell in cells]
    code.lines = [
        "start:",
        *before,
        "br label %loop",
        "loop:",
        *(f"{now} = phi {kind} [ {a}, %start ], [ {b}, %loop ]" for kind, now, a, b in phis),
        *loop,
        "%left = sub i32 %turn, 1",
        "%more = icmp ne i32 %left, 0",
        "br i1 %more, label %loop, label %end",
        "end:",
        *code.lines,
    ]
    bias = ("ptr %bias",) if biased else ()
    return code.function(("ptr %sums", "ptr %x", "ptr %wt", *bias, "i32 %turns"))


def linked(functions: Iterable[str]) -> str:
    """One module of several functions."""
    lines = [line for function in functions for line in function.splitlines()]
    declared = dict.fromkeys(line for line in lines if line.startswith("declare "))
    return "\n".join([*(line for line in lines if line not in declared), *declared])
