"""Traffic of a compiled program: collectives, kernels, bytes and estimated cycles."""

import re

from fmi_jax.aot.hlo import Computation, Instruction, Module

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)
# Instructions that start nothing on the device: names for existing values, and ends of operations
# that another instruction started. The bodies of `while`, `call` and `conditional` are counted.
_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional", "async-start", "async-update", "async-done"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"),
}
_SLICES = ("slice", "dynamic-slice", "gather")
_NO_KERNEL = {"AllocateBuffer", "PinToDevice", "AssumeGatherIndicesInBound", "Sharding"}


def collectives(module: Module) -> dict[str, tuple[int, int]]:
    """Count and bytes of each kind of collective on one device.

    Each counts the bytes of its result, times the trips of the loops around it. A pair of start
    and done counts once.
    """
    found: dict[str, tuple[int, int]] = {}
    for instruction, _, times in module.running():
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            count, total = found.get(kind, (0, 0))
            found[kind] = (count + times, total + result_bytes(instruction) * times)
    return found


def result_bytes(instruction: Instruction) -> int:
    """Bytes of a collective's result. The type of a start holds its operands and then the results,
    except for an all-reduce, which holds the results alone."""
    shapes = instruction.shapes
    if instruction.opcode.endswith("-start") and not instruction.opcode.startswith("all-reduce"):
        operands = len(instruction.operands)
        if len(shapes) >= 2 * operands:
            shapes = shapes[operands : 2 * operands]
    return sum(shape.bytes for shape in shapes)


def kernels(module: Module) -> int:
    """Count the operations that the device starts: fusions, products, library calls and copies.

    Each counts as often as it runs; a loop's condition as often as its body. Operations inside a
    fusion do not count, nor do collectives.
    """
    return sum(times for instruction, _, times in module.running() if starts(instruction))


def starts(instruction: Instruction) -> bool:
    """Test whether the device starts the instruction as an operation and it is no collective."""
    opcode = instruction.opcode
    return not (
        opcode in _NOTHING
        or opcode.endswith(("-done", "-update"))
        or opcode.removesuffix("-start") in COLLECTIVES
        or instruction.target in _NO_KERNEL
    )


def bytes_accessed(module: Module) -> int:
    """Bytes that operations read and write, for compilers that state none: operands and results,
    of which only the part counts that a fusion slices out or updates."""
    total = 0
    for instruction, computation, times in module.running():
        if not starts(instruction):
            continue
        moved = instruction.bytes + sum(
            computation[name].bytes for name in instruction.operands if name in computation
        )
        if instruction.opcode == "fusion":
            moved -= sum(_spared(module.computations[n]) for n in instruction.named("calls"))
        total += moved * times
    return total


def _spared(fused: Computation) -> int:
    """Bytes of operands and results that a fusion does not touch."""
    spared = 0
    for name, parameter in fused.items():
        if parameter.opcode != "parameter":
            continue
        users = [i for i in fused.values() if name in i.operands]
        updates = [
            fused[user.operands[1]].bytes
            for user in users
            if user.opcode == "dynamic-update-slice" and user.operands[0] == name
        ]
        slices = [user.bytes for user in users if user.opcode in _SLICES]
        if len(users) == len(slices):
            spared += max(parameter.bytes - sum(slices), 0)
        elif len(users) == len(updates):  # in place: only the updated part is read and written
            spared += max(2 * (parameter.bytes - sum(updates)), 0)
    return spared


def cycles(module: Module) -> int | None:
    """Sum of the cycles that the TPU compiler estimates, loop trips included. Pallas kernels have
    no estimate. None if nothing is estimated."""
    estimates = [
        int(match.group(1)) * times
        for instruction, _, times in module.running()
        if (match := re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes))
    ]
    return sum(estimates) if estimates else None
