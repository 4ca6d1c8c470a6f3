"""Chips that programs can be compiled for, and the number of chips of a program."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from fmi_jax.errors import UsageError, unknown_name

GIB = 2**30
GPUS_PER_HOST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """Data of a chip that the compilers support.

    Attributes:
      platform: "gpu" or "tpu", the value of `jax.default_backend` on the chip.
      memory: bytes that a program can use.
      flops: dense bfloat16 FLOP/s that the maker states.
      bandwidth: bytes/s to and from that memory.
      compute_capability: compute capability of a GPU, else None.
      slices: topologies of a TPU, the smallest (one host) first; empty for a GPU.
    """

    platform: str
    memory: int
    flops: float
    bandwidth: float
    compute_capability: tuple[int, int] | None = None
    slices: tuple[str, ...] = ()


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


def _gpu(name: str, flops: float) -> Chip:
    """Make the chip of a GPU from its text proto and its stated FLOP/s."""
    text = _description(name)

    def number(field: str) -> int:
        match = re.search(rf"\b{field}: (\d+)", text)
        return int(match.group(1)) if match else 0  # protobuf leaves zeros out

    return Chip(
        platform="gpu",
        memory=number("device_memory_size"),
        flops=flops,
        bandwidth=number("memory_bandwidth"),
        compute_capability=(number("major"), number("cuda_compute_capability.*minor")),
    )


def _description(name: str) -> str:
    return (Path(__file__).parent / f"{name}.txtpb").read_text()


# FLOP/s, and for TPUs memory and bandwidth, are from the makers' data sheets. The TPU compiler
# keeps some memory for itself and says so when a program does not fit into the rest.
CHIPS = {
    "v5e": Chip(platform="tpu", memory=16 * GIB, flops=197e12, bandwidth=819e9, slices=_FLAT),
    "v5p": Chip(platform="tpu", memory=95 * GIB, flops=459e12, bandwidth=2765e9, slices=_CUBES),
    "v6e": Chip(platform="tpu", memory=32 * GIB, flops=918e12, bandwidth=1640e9, slices=_FLAT),
    "a100": _gpu("a100", 312e12),
    "h100": _gpu("h100", 989e12),
    "h200": _gpu("h200", 989e12),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips that a program is compiled for.

    Attributes:
      name: name of a chip in `CHIPS`.
      topology: arrangement of TPU chips ("2x2"), or hosts x GPUs ("1x8").
      count: number of chips that the program runs on, the first of the topology.
    """

    name: str
    topology: str
    count: int

    @property
    def chip(self) -> Chip:
        """Data of the chip."""
        return CHIPS[self.name]

    def devices(self) -> list[Any]:
        """List the chips as devices that can only be compiled for. Needs the compilers."""
        import jax
        from jax.experimental import topologies

        if self.chip.platform == "tpu":
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.name}:{self.topology}"
            ).devices
        else:
            jax.devices()  # finds the CUDA plugin
            found = topologies.get_topology_desc(
                platform="cuda",
                topology_name="",
                topology=f"1x{self.topology}",
                target_config=_description(self.name),
            ).devices
        return list(found)[: self.count]


def target(text: str, devices: int = 0) -> Target:
    """Parse a target: a chip ("h200", "v5e"), with a topology ("v5e:4x4") or without.

    Without a topology it is the smallest one with `devices` chips: whole hosts of 8 GPUs, or a TPU
    slice of 4 chips or more.

    Args:
      text: target as on the command line.
      devices: number of chips to use, the first of the topology; 0: all.

    Raises:
      UsageError: the chip or the topology is unknown, or there are too few chips.
    """
    name, _, topology = text.partition(":")
    if name not in CHIPS:
        raise unknown_name("target", name, CHIPS)
    if devices < 0:
        raise UsageError(f"devices={devices}: expected 1 or more, or 0 for all of the topology.")
    chip = CHIPS[name]
    if not topology:
        if chip.platform == "gpu":
            topology = f"{max(-(-devices // GPUS_PER_HOST), 1)}x{GPUS_PER_HOST}"
        else:
            sizes = {name: math.prod(map(int, name.split("x"))) for name in chip.slices}
            enough = (name for name, size in sizes.items() if size >= devices)
            topology = next(enough, chip.slices[-1])
    sides = topology.split("x")
    if not all(side.isdecimal() and int(side) for side in sides):
        example = f"{name}:{(*chip.slices, '2x8')[0]}"
        raise UsageError(f"target {text!r}: expected a topology such as {example!r}.")
    total = math.prod(int(side) for side in sides)
    if chip.slices and topology not in chip.slices:
        raise unknown_name(f"topology of {name}", topology, chip.slices)
    if not chip.slices and (len(sides) != 2 or int(sides[1]) > GPUS_PER_HOST):
        raise UsageError(
            f"target {text!r}: expected hosts x GPUs of each host, at most {GPUS_PER_HOST},"
            f" such as '{name}:2x8'."
        )
    if devices > total:
        raise UsageError(f"devices={devices}: {name}:{topology} has {total}.")
    return Target(name, topology, devices or total)
