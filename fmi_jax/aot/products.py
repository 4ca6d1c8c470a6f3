"""Matrix products and convolutions of a compiled program: their operands and FLOPs."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from fmi_jax.aot.hlo import Computation, Instruction, Module, Shape

_ATTENTION = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
"""Number of n x m x d products in each of cuDNN's calls. Forward: scores and their sum over values.
Backward: scores again, and the gradients of scores, queries, keys and values."""


@dataclasses.dataclass(frozen=True)
class Product:
    """Matrix product or convolution.

    Attributes:
      shape: shape of the result.
      left, right: extent of the result that comes from the left operand alone, and from the
        right one alone (queries and keys, if it makes scores). Dimensions that both have (images,
        heads) are in neither.
      contracted: extent that is summed over.
      windowed: True if it slides a window, which no matrix product does.
      flops: two for each multiplication that is carried out, none for padding.
    """

    shape: Shape
    left: int
    right: int
    contracted: int
    windowed: bool
    flops: int


class Side(NamedTuple):
    """One spatial dimension of a convolution: extents, and the values of XLA's `window`."""

    image: int
    kernel: int
    output: int
    stride: int = 1
    low: int = 0
    image_dilation: int = 1
    kernel_dilation: int = 1

    def valid(self) -> int:
        """Count the pairs of an output place and a kernel place that meet an element."""
        reach = (self.image - 1) * self.image_dilation
        positions = (
            tap * self.kernel_dilation - self.low + place * self.stride
            for tap in range(self.kernel)
            for place in range(self.output)
        )
        return sum(0 <= at <= reach and at % self.image_dilation == 0 for at in positions)


def product(instruction: Instruction, computation: Computation) -> Product | None:
    """Parse an instruction as a product; None if it is not one."""
    opcode, target = instruction.opcode, instruction.target
    if opcode == "convolution" or target.startswith("__cudnn$conv"):
        return _convolution(instruction, computation)
    if opcode == "dot" or target.startswith("__cublas"):
        return _dot(instruction, computation)
    return None


def attention_flops(instruction: Instruction, computation: Computation) -> int | None:
    """FLOPs of a call of cuDNN's attention; None for any other instruction."""
    if instruction.target not in _ATTENTION:
        return None
    q, k = _operands(instruction, computation)[:2]
    keys = k.dims[1]  # jax's layout is [b, n, heads, d]
    return 2 * _ATTENTION[instruction.target] * q.size * keys


def flops(module: Module) -> tuple[int, tuple[str, ...]]:
    """FLOPs of all products and attention kernels, loop trips included, and the names of the
    kernels that could not be counted."""
    total, unknown = 0, set()
    for instruction, computation, times in module.everything():
        if found := product(instruction, computation):
            total += found.flops * times
        elif attention := attention_flops(instruction, computation):
            total += attention * times
        elif instruction.target in ("tpu_custom_call", "__gpu$xla.gpu.triton"):
            unknown.add(re.sub(r"[.\d]+$", "", instruction.name))
    return total, tuple(sorted(unknown))


def _operands(instruction: Instruction, computation: Computation) -> list[Shape]:
    return [computation[name].shapes[0] for name in instruction.operands]


def _dot(instruction: Instruction, computation: Computation) -> Product:
    lhs, rhs = _operands(instruction, computation)[:2]

    def dimensions(side: str, kind: str) -> list[int]:
        # `lhs_batch_dims={0,1}`, or `"lhs_batch_dimensions":["0","1"]` of a call of cuBLAS.
        named = rf'{side}_{kind}_(?:dims=\{{|dimensions":\[)([^\]}}]*)'
        match = re.search(named, instruction.attributes)
        return [int(number) for number in re.findall(r"\d+", match.group(1))] if match else []

    contracted = math.prod(lhs.dims[i] for i in dimensions("lhs", "contracting"))
    batch = math.prod(lhs.dims[i] for i in dimensions("lhs", "batch"))
    left, right = (side.size // (batch * contracted) for side in (lhs, rhs))
    flops = 2 * batch * left * right * contracted
    return Product(instruction.shapes[0], left, right, contracted, False, flops)


def _convolution(instruction: Instruction, computation: Computation) -> Product | None:
    labels = re.split(r"_|->", instruction.text("dim_labels"))
    operands = _operands(instruction, computation)
    if len(labels) != 3 or len(operands) < 2:
        return None
    result = instruction.shapes[0]
    image, kernel, output = operands[0], operands[1], result
    if "BackwardInput" in instruction.target:  # cuDNN names all three by the forward convolution
        image, kernel, output = result, operands[1], operands[0]
    elif "BackwardFilter" in instruction.target:
        image, kernel, output = operands[0], result, operands[1]
    at = [dict(zip(label, shape.dims, strict=True)) for label, shape in
          zip(labels, (image, kernel, output), strict=True)]  # fmt: skip
    batch_groups, groups = (
        int(instruction.text(f"{kind}_group_count") or 1) for kind in ("batch", "feature")
    )
    left, right, contracted = at[0]["b"] // batch_groups, at[1]["o"] // groups, at[1]["i"]
    flops = 2 * left * right * groups * contracted
    windowed = False
    for side in _sides(instruction.text("window"), at):
        valid = side.valid()
        flops *= valid
        if side.output == 1 and valid == side.kernel:
            contracted *= valid
        elif side.kernel == 1:
            left *= side.output
        elif side.image == 1 and valid == side.output:
            right *= side.output
        elif valid != side.output or side.image != side.output:  # else both operands have it
            windowed = True
    return Product(result, left, right, contracted, windowed, flops)


def _sides(window: str, at: list[dict[str, int]]) -> list[Side]:
    places = sorted(label for label in at[0] if label.isdecimal())
    fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", window))

    def of(name: str, i: int, default: int) -> int:
        return int(fields[name].split("x")[i].split("_")[0]) if name in fields else default

    return [
        Side(
            image=at[0][place],
            kernel=at[1][place],
            output=at[2][place],
            stride=of("stride", i, 1),
            low=of("pad", i, 0),
            image_dilation=of("lhs_dilate", i, 1),
            kernel_dilation=of("rhs_dilate", i, 1),
        )
        for i, place in enumerate(places)
    ]


def products(module: Module) -> Iterator[tuple[Product, int]]:
    """Yield every product of the program, and how often it runs."""
    for instruction, computation, times in module.everything():
        if found := product(instruction, computation):
            yield found, times
