"""The hardware that programs are compiled for.

Every choice between kernels asks here when a program is traced, so that a program for hardware
that is not attached (`benchmarks/aot`) is the one that runs there.
"""

import functools
from pathlib import Path

import jax


def platform() -> str:
    """The back end: "cpu", "gpu" or "tpu"."""
    return jax.default_backend()


def compute_capability() -> tuple[int, int] | None:
    """Compute capability of the NVIDIA GPUs, (9, 0) for an H100; the lowest where they differ.

    None on any other hardware.
    """
    if platform() != "gpu":
        return None
    found = [getattr(device, "compute_capability", None) for device in jax.devices()]
    if not all(isinstance(version, str) for version in found):  # AMD names an architecture
        return None
    return min(tuple(int(part) for part in str(version).split(".")) for version in found)  # type: ignore[return-value]


def bfloat16_products() -> bool:
    """Whether the CPU has instructions for products of bfloat16 (AVX512-BF16 or AMX).

    False on any other hardware, and where the system does not say (it does on Linux).
    """
    return platform() == "cpu" and not _BFLOAT16_INSTRUCTIONS.isdisjoint(cpu_instructions())


_BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}


@functools.cache
def cpu_instructions() -> frozenset[str]:
    """Names of the instruction sets of an x86 CPU, as Linux has them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = [line.partition(":")[2] for line in lines if line.startswith("flags")]
    return frozenset(flags[0].split()) if flags else frozenset()
