"""The hardware that programs are compiled for.

Every choice between kernels asks here when a program is traced, so that a program for hardware
that is not attached (`benchmarks/aot`) is the one that runs there.
"""

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
