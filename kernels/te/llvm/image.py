"""An image cut into tiles, each of which becomes a call of straight code.

Tiles at the image's border have code of their own, which leaves out what lies outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from textwrap import indent

from tvm.ir import IRModule

from kernels.te.llvm.script import parallel
from kernels.workload import Conv, Depthwise

ROWS = """
if {first} <= {row} and {row} < {end}:
{columns}
"""
COLUMNS = """
for wo, c in T.grid({count}, {each}):
    T.evaluate(
        T.call_extern(
            "int32",
            "{name}",
            {y},
            T.address_of(x[vn, {row_of_x}, {column_of_x}, {channel_of_x}]),
            T.address_of({wt}),
            T.address_of({bias}),
        )
    )
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A tile along one axis.

    outputs        how many
    before, after  pixels under them that lie outside the image
    """

    outputs: int
    before: int
    after: int

    def inside(self, K: int, stride: int) -> range:
        """Pixels under the tile that lie inside the image, counted from the first under it."""
        return range(self.before, (self.outputs - 1) * stride + K - self.after)


def sides(size: int, outputs: int, block: int, *, K: int, stride: int, before: int) -> list[Side]:
    """Along an axis of the image, its tiles of `block` outputs, the last one perhaps of fewer."""
    found = []
    for first in range(0, outputs, block):
        count = min(block, outputs - first)
        start = first * stride - before
        end = start + (count - 1) * stride + K
        found.append(Side(outputs=count, before=max(0, -start), after=max(0, end - size)))
    return found


def across(workload: Conv | Depthwise, block: int) -> list[Side]:
    """The tiles of a row."""
    K, stride, (_, _, left, _) = workload.K, workload.stride, workload.pad
    return sides(workload.Wi, workload.Wo, block, K=K, stride=stride, before=left)


def down(workload: Conv | Depthwise, block: int) -> list[Side]:
    """The tiles of a column."""
    K, stride, (top, _, _, _) = workload.K, workload.stride, workload.pad
    return sides(workload.Hi, workload.Ho, block, K=K, stride=stride, before=top)


def scheduled(
    workload: Conv | Depthwise,
    code: Callable[[Side, Side], tuple[str, str]],
    *,
    tile: tuple[int, int],
    channels: int,
    parts: int,
    wt: Sequence[int],
    bias: Sequence[int],
) -> IRModule:
    """The function main(x, wt, bias, y), x (N,Hi,Wi,Ci) and y (N,Ho,Wo,Co).

    code      from a tile's sides to name and code of `int (y, x, wt, bias)`, x being its first
              pixel inside the image
    tile      rows and columns of outputs
    channels  that a call makes, of as many of x where the convolution is depthwise, or of all
    parts     tasks that share the channels of some rows
    wt, bias  shapes, whose last index counts channels where the convolution is depthwise; else the
              first of three counts calls
    """
    each = workload.y_shape[-1] // channels // parts
    call = f"vc * {each} + c"
    places = {"channel_of_x": "0", "wt": f"wt[{call}, 0, 0]", "bias": f"bias[{call}, 0, 0]"}
    if isinstance(workload, Depthwise):
        channel = f"({call}) * {channels}"
        places = {"channel_of_x": channel, "wt": f"wt[0, {channel}]", "bias": f"bias[{channel}]"}
    codes: dict[str, str] = {}
    task = calls(
        workload,
        code,
        codes,
        tile=tile,
        row="vh",
        each=each,
        y=f"T.address_of(y[vn, {{row}}, {{column}}, ({call}) * {channels}])",
        **places,
    )
    return parallel(
        {"x": workload.x_shape, "wt": wt, "bias": bias, "y": workload.y_shape},
        workload.dtype,
        {
            "vn": ("n", workload.N),
            "vh": ("ho", len(down(workload, tile[0]))),
            "vc": ("co", parts),
        },
        task,
        codes,
        by_image=("x", "y"),
    )


def calls(
    workload: Conv | Depthwise,
    code: Callable[[Side, Side], tuple[str, str]],
    codes: dict[str, str],
    *,
    tile: tuple[int, int],
    row: str,
    each: int,
    y: str,
    **places: str,
) -> str:
    """Statements that make a row of tiles; what they call is added to `codes`.

    row     of tiles, an expression
    each    calls for each tile, which `c` counts
    y       address of a tile of outputs, from its {row} and {column}
    places  expressions: channel_of_x, and wt and bias, elements of these
    """
    stride, (top, _, left, _) = workload.stride, workload.pad
    rows = ""
    for first, end, vertical in _runs(down(workload, tile[0])):
        columns = ""
        for start, stop, horizontal in _runs(across(workload, tile[1])):
            name, codes[name] = code(vertical, horizontal)
            columns += COLUMNS.format(
                name=name,
                count=stop - start,
                each=each,
                y=y.format(row=f"({row}) * {tile[0]}", column=f"(wo + {start}) * {tile[1]}"),
                row_of_x=f"({row}) * {tile[0] * stride} - {top - vertical.before}",
                column_of_x=f"(wo + {start}) * {tile[1] * stride} - {left - horizontal.before}",
                **places,
            )
        rows += ROWS.format(first=first, end=end, row=row, columns=indent(columns.strip(), " " * 4))
    return rows.strip()


def _runs(tiles: Sequence[Side]) -> Iterator[tuple[int, int, Side]]:
    """First tile, the one behind the last, and what they are, of all that are alike in a row."""
    first = 0
    for side, alike in groupby(tiles):
        end = first + len(list(alike))
        yield first, end, side
        first = end
