"""Kernels' innermost code as LLVM's intermediate code: what TensorIR cannot say.

A compiler that sees only values moves loads up and lets sums wait in memory. An empty statement of
assembly code that takes all sums along ends each step: what comes before it ends before the next
loads, and nothing spills. Addresses go through such statements, too, so that LLVM does not see that
the next one is this one and a constant.

On 64-bit Arm one instruction loads four registers and moves its address on,
`ld1 {v0.4s-v3.4s}, [x0], #64`. LLVM makes it of an intrinsic alone, whose struct no call in
TensorIR can take apart, and moves the address on only where that is hidden.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from kernels.te.tile import LINE_BYTES
from targets.target import DTYPE_BITS, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Isa:
    """What of an instruction set the code is made for.

    vector_bits  of a register
    constraint   such a register's, in a statement of assembly code
    group        registers that an instruction loads at most
    """

    vector_bits: int
    constraint: str
    group: int = 1

    def lanes(self, dtype: str) -> int:
        return self.vector_bits // DTYPE_BITS[dtype]


NEON = Isa(vector_bits=128, constraint="w", group=4)
AVX2 = Isa(vector_bits=256, constraint="x")
AVX512 = Isa(vector_bits=512, constraint="v")
ZERO, SIX = ("maxnum", 0), ("minnum", 6)
ELEMENTS = {"float32": ("float", "f32", 4), "float16": ("half", "f16", 2)}


class Code:
    """Instructions of a function's body, a line each; values are named as they come."""

    def __init__(self, isa: Isa, dtype: str) -> None:
        self._isa = isa
        self._element, suffix, self.item_bytes = ELEMENTS[dtype]
        self.lanes = isa.lanes(dtype)
        self.vector = f"<{self.lanes} x {self._element}>"
        self._suffix = f"v{self.lanes}{suffix}"
        self._numbers = count()
        self._called: dict[str, str] = {}
        self.lines: list[str] = []
        self.outside: list[str] = []

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
            group = min(self._isa.group, vectors - len(loaded))
            if group == 1:
                loaded.append(
                    self.let(f"load {self.vector}, ptr {pointer}, align {self.item_bytes}")
                )
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
        return self.let(f"load {self.vector}, ptr {address}, align {self.item_bytes}")

    def hidden(self, elements: int) -> str:
        """The bytes of so many elements in a register, a number that LLVM does not know."""
        return self.let(f'call i64 asm "", "=r,0"(i64 {elements * self.item_bytes})')

    def ask(self, pointer: str, elements: int) -> None:
        """Ask for the cache lines of so many elements, to be in L2."""
        for first in range(0, elements * self.item_bytes, LINE_BYTES):
            self.ask_at(pointer, first // self.item_bytes, "L2")

    def ask_at(self, pointer: str, elements: int, where: str) -> None:
        """Ask for the cache line so many elements further on.

        where  L2, L1, or ours, in L1 and to be written
        """
        how = {"L2": "i32 0, i32 2", "L1": "i32 0, i32 3", "ours": "i32 1, i32 3"}[where]
        address = self.behind(pointer, elements)
        self.lines.append(f"call void @llvm.prefetch.p0(ptr {address}, {how}, i32 1)")

    def advance(self, pointer: str, distance: str) -> str:
        """The address so many bytes further on."""
        return self.let(f"getelementptr i8, ptr {pointer}, i64 {distance}")

    def step(self, pointers: Sequence[str], sums: Sequence[str]) -> tuple[list[str], list[str]]:
        """The same once more, for what shall come after all that they are made of."""
        kinds = ["ptr"] * len(pointers) + [self.vector] * len(sums)
        outputs = ["=r"] * len(pointers) + [f"={self._isa.constraint}"] * len(sums)
        constraints = ",".join([*outputs, *map(str, range(len(kinds)))])
        values = ", ".join(
            f"{kind} {name}" for kind, name in zip(kinds, [*pointers, *sums], strict=True)
        )
        all_of = self._struct(kinds)
        value = self.let(f'call {all_of} asm sideeffect "", "{constraints}"({values})')
        parts = self._parts(all_of, value, len(kinds))
        return parts[: len(pointers)], parts[len(pointers) :]

    def broadcast(self, pointer: str, elements: int) -> str:
        """The one value so many elements further on, in all lanes."""
        address = self.behind(pointer, elements)
        value = self.let(f"load {self._element}, ptr {address}, align {self.item_bytes}")
        one = self.let(f"insertelement {self.vector} poison, {self._element} {value}, i32 0")
        return self.lane(one, 0)

    def lane(self, value: str, number: int) -> str:
        """One lane of a vector in all lanes: no instruction where it is a factor."""
        splat = f"<{self.lanes} x i32> splat (i32 {number})"
        return self.let(f"shufflevector {self.vector} {value}, {self.vector} poison, {splat}")

    def multiply_add(self, one: str, other: str, added: str) -> str:
        """one * other + added."""
        values = ", ".join(f"{self.vector} {value}" for value in (one, other, added))
        return self.let(f"call {self.vector} @llvm.fma.{self._suffix}({values})")

    def add(self, one: str, other: str) -> str:
        return self.let(f"fadd {self.vector} {one}, {other}")

    def subtract(self, one: str, other: str) -> str:
        return self.let(f"fsub {self.vector} {one}, {other}")

    def activate(self, value: str, activation: str) -> str:
        """`value` after the activation."""
        for name, limit in {"none": (), "relu": (ZERO,), "relu6": (ZERO, SIX)}[activation]:
            bound = "zeroinitializer" if limit == 0 else f"splat ({self._element} {limit:e})"
            operands = f"{self.vector} {value}, {self.vector} {bound}"
            value = self.let(f"call {self.vector} @llvm.{name}.{self._suffix}({operands})")
        return value

    def store(self, value: str, pointer: str) -> None:
        self.lines.append(f"store {self.vector} {value}, ptr {pointer}, align {self.item_bytes}")

    def call(self, name: str, *arguments: tuple[str, object]) -> None:
        """Call what returns nothing.

        arguments  kind and value of each
        """
        values = ", ".join(f"{kind} {value}" for kind, value in arguments)
        self.lines.append(f"call void {name}({values})")
        kinds = ", ".join(kind for kind, _ in arguments)
        self._called[name] = f"declare void {name}({kinds})"

    def constant(self, data: bytes) -> str:
        """The name of constant bytes."""
        name = f"@bytes_{hashlib.sha256(data).hexdigest()[:16]}"
        text = "".join(f"\\{byte:02x}" for byte in data)
        self.outside.append(f'{name} = private constant [{len(data)} x i8] c"{text}"')
        return name

    def steps(self, steps: Sequence[Sequence[int]], kinds: Sequence[Sequence[str]]) -> None:
        """Go on with step after step, each the lines of its kind.

        steps  the number of its kind, and the numbers that these see as `%given.0` and so on
        kinds  lines of each; the first is a label, `kind.` and its number
        """
        width = max(map(len, steps))
        rows = [[*step, *[0] * (width - len(step))] for step in [*steps, [len(kinds)]]]
        values = ", ".join(f"i32 {value}" for row in rows for value in row)
        table = f"[{len(rows) * width} x i32]"
        name = f"@steps_{hashlib.sha256(values.encode()).hexdigest()[:16]}"
        self.outside.append(f"{name} = private constant {table} [ {values} ]")
        labels = " ".join(f"i32 {number}, label %kind.{number}" for number in range(len(kinds)))
        self.lines += [
            "%place = alloca ptr",
            f"store ptr {name}, ptr %place",
            "br label %step",
            "step:",
            "%now = load ptr, ptr %place",
            f"%following = getelementptr i32, ptr %now, i64 {width}",
            "store ptr %following, ptr %place",
            "%kind = load i32, ptr %now",
        ]
        for number in range(1, width):
            address = self.let(f"getelementptr i32, ptr %now, i64 {number}")
            value = self.let(f"load i32, ptr {address}")
            self.lines.append(f"%given.{number - 1} = sext i32 {value} to i64")
        self.lines += [
            f"switch i32 %kind, label %done [ {labels} ]",
            *(line for lines in kinds for line in (*lines, "br label %step")),
            "done:",
        ]

    def loop(
        self,
        phis: Sequence[tuple[str, str, str, str]],
        *,
        before: Sequence[str],
        turn: Sequence[str],
        after: Sequence[str],
    ) -> None:
        """Be a loop, as `looped` says, and what comes before and after it."""
        self.lines = ["start:", *before, *looped(phis, turn), *after]

    def function(self, parameters: Sequence[str]) -> tuple[str, str]:
        """Name and code of a function, made a part of its caller, which returns 0.

        parameters  kind and name of each; the name of the function is the same for the same code
        """
        body = "\n".join(
            [f"({', '.join(parameters)}) alwaysinline {{", *self.lines, "ret i32 0", "}"]
        )
        name = f"septune_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
        head = f"define linkonce_odr hidden i32 @{name}"
        return name, "\n".join([*self.outside, head + body, *self._declarations()])

    def _declarations(self) -> list[str]:
        """Of the intrinsics."""
        arities = {"fma": 3, "maxnum": 2, "minnum": 2}
        declared = [*self._called.values()]
        declared += [
            f"declare {self.vector} @llvm.{name}.{self._suffix}({', '.join([self.vector] * arity)})"
            for name, arity in arities.items()
        ]
        declared += [
            f"declare {self._struct([self.vector] * group)} "
            f"@llvm.aarch64.neon.ld1x{group}.{self._suffix}.p0(ptr)"
            for group in range(2, self._isa.group + 1)
        ]
        if any("@llvm.prefetch" in line for line in self.lines):
            declared.append("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        return declared

    def _struct(self, kinds: Sequence[str]) -> str:
        return f"{{ {', '.join(kinds)} }}"

    def _parts(self, all_of: str, value: str, number: int) -> list[str]:
        return [self.let(f"extractvalue {all_of} {value}, {i}") for i in range(number)]


def looped(
    phis: Sequence[tuple[str, str, str, str]],
    turn: Sequence[str],
    *,
    number: str = "",
    behind: str = "start",
) -> list[str]:
    """Lines of a loop, and the label that it ends with, `end` and its number.

    phis    kind, name, value at first, value after a turn; the first counts down, `%left` left
    number  tells one loop of several
    behind  label of what comes before it
    """
    return [
        f"br label %loop{number}",
        f"loop{number}:",
        *(
            f"{now} = phi {kind} [ {a}, %{behind} ], [ {b}, %loop{number} ]"
            for kind, now, a, b in phis
        ),
        *turn,
        f"%left{number} = sub i32 {phis[0][1]}, 1",
        f"%more{number} = icmp ne i32 %left{number}, 0",
        f"br i1 %more{number}, label %loop{number}, label %end{number}",
        f"end{number}:",
    ]


def moved(code: Code, steps: Mapping[str, int]) -> list[tuple[str, str, str, str]]:
    """Phis for `looped` of pointers that move on by so many elements a turn; `.now` names them."""
    return [
        ("ptr", f"{name}.now", name, code.behind(f"{name}.now", elements))
        for name, elements in steps.items()
    ]


def isa_of(target: Target) -> Isa:
    """That of a CPU's vectors."""
    if target.kind == "arm64":
        return NEON
    return AVX512 if target.cpu.vector_bits == AVX512.vector_bits else AVX2


def linked(functions: Iterable[str]) -> str:
    """One module of several functions."""
    lines = [line for function in functions for line in function.splitlines()]
    declared = dict.fromkeys(line for line in lines if line.startswith(("declare ", "@")))
    return "\n".join([*(line for line in lines if line not in declared), *declared])
