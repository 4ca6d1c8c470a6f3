"""Parses the text of a compiled program: computations, instructions, and how often each runs.

The text is XLA's optimised HLO (`compiled.as_text()`), from any back end.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128}


class Shape(NamedTuple):
    """Type of an array.

    Attributes:
      dtype: HLO name of the element type ("bf16").
      dims: extent of each dimension.
    """

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without any padding of the layout."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS.get(self.dtype) or (int(digits.group()) if digits else 0)
        return self.size * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction (line) of a computation.

    Attributes:
      name: name, unique in its computation.
      shapes: arrays of its result; several for a tuple.
      opcode: operation ("fusion", "custom-call", "all-reduce-start").
      operands: names of the instructions it reads.
      attributes: text after the operands.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def bytes(self) -> int:
        """Size of its result in bytes."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def target(self) -> str:
        """Library function or kernel that a custom call names; "" for other instructions."""
        return self.text("custom_call_target") if self.opcode == "custom-call" else ""

    def named(self, attribute: str) -> tuple[str, ...]:
        """Names of the computations in an attribute: `calls`, `body`, `branch_computations`."""
        return tuple(re.findall(r"[\w.\-]+", self.text(attribute)))

    def text(self, attribute: str) -> str:
        """Value of an attribute without brackets inside: `dim_labels`, `custom_call_target`."""
        match = re.search(rf"\b{attribute}=(\"[^\"]*\"|\{{[^{{}}]*\}}|[^\s,]+)", self.attributes)
        return match.group(1).strip('"{}') if match else ""


Computation = dict[str, Instruction]
"""Instructions of a computation by name, in order."""

_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# Attributes that name the computations that an instruction runs.
_CALLED = {
    "while": ("condition", "body"),
    "call": ("to_apply",),
    "async-start": ("calls",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
}


@dataclasses.dataclass(frozen=True)
class Module:
    """Parsed HLO module, that is, a compiled program.

    Attributes:
      computations: instructions of each computation, by its name.
      entry: name of the computation that is run.
    """

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """Run count of each computation: the product of the trip counts of the loops around it.

        Includes the entry, loop bodies and conditions, and called computations. Fusions and the
        computations that reductions apply belong to the instruction that names them. All branches
        of a conditional count.
        """
        found: dict[str, int] = defaultdict(int)

        def run(name: str, times: int) -> None:
            found[name] += times
            for instruction in self.computations[name].values():
                trips = self.trips(instruction) if instruction.opcode == "while" else 1
                for attribute in _CALLED.get(instruction.opcode, ()):
                    for inner in instruction.named(attribute):
                        run(inner, times * trips)

        run(self.entry, 1)
        return dict(found)

    def trips(self, loop: Instruction) -> int:
        """Trip count of a `while` loop: the compiler's own note, else the largest constant
        in its condition, else 1."""
        known = re.search(r'known_trip_count"?[:=]\{"?n"?[:=]"?(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        bounds = [
            int(instruction.operands[0])
            for name in loop.named("condition")
            for instruction in self.computations.get(name, {}).values()
            if instruction.opcode == "constant" and instruction.operands[0].isdecimal()
        ]
        return max(bounds, default=1)

    def running(self) -> Iterator[tuple[Instruction, Computation, int]]:
        """Yield every instruction outside fusions, its computation, and how often it runs."""
        for name, times in self.times.items():
            computation = self.computations[name]
            yield from ((instruction, computation, times) for instruction in computation.values())

    def inside(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """Yield every instruction inside a fusion, nested ones too; nothing for other opcodes."""
        if instruction.opcode != "fusion":
            return
        for name in instruction.named("calls"):
            computation = self.computations[name]
            for inner in computation.values():
                yield inner, computation
                yield from self.inside(inner)

    def everything(self) -> Iterator[tuple[Instruction, Computation, int]]:
        """Yield the same as `running`, and all instructions inside fusions."""
        for instruction, computation, times in self.running():
            yield instruction, computation, times
            for inner, where in self.inside(instruction):
                yield inner, where, times


def read(text: str) -> Module:
    """Parse the text of an HLO module."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line.rstrip()):
            current = computations.setdefault(header.group(2), {})
            if header.group(1):
                entry = header.group(2)
        elif line.startswith("}") and not line.startswith("}}"):
            current = None
        # The text of a kernel may continue over lines of any kind.
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("expected the text of an HLO module, with an ENTRY computation")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
    match = _LINE.match(line)
    if not match:
        return None
    name, rest = match.groups()
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    operands, attributes = rest[:end], rest[end + 1 :]
    names = re.findall(r"%([\w.\-]+)", operands) or [operands.strip()]
    return Instruction(name, shapes(result), opcode, tuple(names), attributes)


def _closing(text: str) -> int:
    """Index of the bracket that closes the one at the start of `text`."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    return len(text)


def shapes(text: str) -> tuple[Shape, ...]:
    """Parse every array in the text of a type."""
    return tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(text)
    )
