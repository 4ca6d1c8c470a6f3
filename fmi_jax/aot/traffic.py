"""What a compiled program moves and starts: collectives, kernels, bytes, estimated cycles."""

import re
from collections.abc import Mapping

from fmi_jax.aot.hlo import Instruction, Module

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
# Instructions that start nothing on the device: names for what is there already, and the ends of
# what another instruction has started. What `while`, `call` and `conditional` run counts itself.
_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional", "async-start", "async-update", "async-done"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"),
}
_NO_KERNEL = {"AllocateBuffer", "PinToDevice", "AssumeGatherIndicesInBound", "Sharding"}


def collectives(module: Module) -> dict[str, tuple[int, int]]:
    """Count and bytes of each kind of collective that runs, on one device.

    One counts the bytes of its result, as often as the loops around it run; a pair of start and
    done counts once.
    """
    found: dict[str, tuple[int, int]] = {}
    for instruction, _, times in module.running():
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            count, total = found.get(kind, (0, 0))
            size = result_bytes(instruction)
            found[kind] = (count + times, total + size * times)
    return found


def result_bytes(instruction: Instruction) -> int:
    """Bytes that a collective makes. The type of a start holds its operands as well, and after
    them the results; that of an all-reduce does not."""
    shapes = instruction.shapes
    if instruction.opcode.endswith("-start") and not instruction.opcode.startswith("all-reduce"):
        operands = len(instruction.operands)
        if len(shapes) >= 2 * operands:
            shapes = shapes[operands : 2 * operands]
    return sum(shape.bytes for shape in shapes)


def kernels(module: Module) -> int:
    """How many operations the device starts: fusions, products, calls of libraries, copies and
    collectives, each as often as it runs. What is inside a fusion is no operation of its own."""
    return sum(times for instruction, _, times in module.running() if starts(instruction))


def starts(instruction: Instruction) -> bool:
    """Whether the instruction starts something on the device."""
    opcode = instruction.opcode
    if opcode in _NOTHING or opcode.endswith(("-done", "-update")):
        return False
    return not (opcode == "custom-call" and instruction.text("custom_call_target") in _NO_KERNEL)


def bytes_accessed(module: Module) -> int:
    """Bytes that operations read and write, each operand whole but where a fusion takes slices
    of it alone: an upper bound, for compilers that state none."""
    total = 0
    for instruction, computation, times in module.running():
        if not starts(instruction):
            continue
        sizes = [computation[name].bytes for name in instruction.operands if name in computation]
        total += (sum(sizes) + instruction.bytes) * times
    return total


def cycles(module: Module) -> int | None:
    """Sum of the cycles that the TPU compiler estimates, with the trips of loops; Pallas kernels
    have none. None where nothing is estimated."""
    total, any_found = 0, False
    for instruction, _, times in module.running():
        match = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        if match:
            total, any_found = total + int(match.group(1)) * times, True
    return total if any_found else None


def total_bytes(found: Mapping[str, tuple[int, int]]) -> int:
    """Bytes of all collectives together."""
    return sum(size for _, size in found.values())
