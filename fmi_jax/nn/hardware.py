"""The hardware that programs are compiled for.

Every choice between kernels asks here when a program is traced, so that a program for hardware
that is not attached (`benchmarks/aot`) is the one that runs there.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


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


def compute_type(name: str) -> Any:
    """The type that `backbone.dtype=name` computes in.

    "auto" is bfloat16 on a TPU and on GPUs that have it (NVIDIA's from compute capability 8.0 on,
    all of AMD's), and float32 on other GPUs and on a CPU.
    """
    if name != "auto":
        return jnp.dtype(name)
    narrow = platform() in ("gpu", "tpu") and not _old_gpu()
    return jnp.dtype(jnp.bfloat16 if narrow else jnp.float32)


def compute_type_note(name: str) -> str | None:
    """One line on what `backbone.dtype=name` costs on this hardware; None where it is the best."""
    if _old_gpu() and name == "auto":
        return (
            f"backbone.dtype=auto: {_old_gpu()}, so the backbone computes in float32, in twice the"
            " memory of bfloat16 and without tensor cores."
        )
    if _old_gpu() and name == "bfloat16":
        return (
            f"backbone.dtype=bfloat16: {_old_gpu()} and converts to float32 for every product;"
            " expected float32, which rounds less."
        )
    if platform() == "cpu" and name == "bfloat16" and not bfloat16_products():
        return (
            "backbone.dtype=bfloat16: this CPU has no instructions for it (AVX512-BF16, AMX) and"
            " converts to float32 for every product; float32 rounds less and is no slower."
        )
    return None


def _old_gpu() -> str:
    """Says that these GPUs lack bfloat16; empty on any other hardware."""
    capability = compute_capability()
    if capability is None or capability >= (8, 0):
        return ""
    return "a GPU of compute capability {}.{} has no bfloat16".format(*capability)


def bfloat16_products() -> bool:
    """Test whether the CPU has instructions for products of bfloat16 (AVX512-BF16 or AMX).

    False on any other hardware, and where the system does not say (Linux on x86 does).
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
