"""The process that a run lives in: caches, log noise, and what to say about the machine."""

import dataclasses
import importlib.metadata
import logging
import os
import platform
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fmi_jax import __version__
from fmi_jax.nn import hardware

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_TRACKER = "ignore:resource_tracker:UserWarning"


def configure() -> None:
    """Set up the process: exact products, a persistent compilation cache and quiet libraries.

    The cache lives in `JAX_COMPILATION_CACHE_DIR`, else under the user's cache folder.
    """
    # Float32 is float32 on every back end, as in PyTorch: by default jax rounds what it multiplies
    # to bfloat16 on a TPU and to TF32 on a GPU. Products of bfloat16 are not concerned.
    jax.config.update("jax_default_matmul_precision", "highest")
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(root / "fmi_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    for noisy in ("absl", "asyncio", "orbax", "jax._src.xla_bridge"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what they log as an error they raise
    # A checkpoint that could not be written leaves parts of itself unwritten.
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    if (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        print(
            f"note: this process may use {limit / 2**30:.3g} GiB of memory (ulimit -v). Where that"
            " is too little XLA ends it with code 134 and no message: expected no limit, as XLA"
            " reserves more than it uses.",
            file=sys.stderr,
        )
    # Batches of worker processes that are in use when a run ends are removed from shared memory by
    # Python's resource tracker, as it should; it would warn of each stop. It gets these options.
    if _TRACKER not in sys.warnoptions:
        sys.warnoptions.append(_TRACKER)
    if not isinstance(sys.unraisablehook, _WithoutLateWrites):
        sys.unraisablehook = _WithoutLateWrites(sys.unraisablehook)


@dataclasses.dataclass(frozen=True)
class _WithoutLateWrites:
    """Prints what nobody can catch, but for writes of a checkpoint that end after it has failed.

    Attributes:
      others: hook for everything else.
    """

    others: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self.others(unraisable)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide numbers."""
    return {"python": platform.python_version(), "fmi_jax": __version__} | {
        name: importlib.metadata.version(name) for name in _LIBRARIES
    }


def device() -> dict[str, Any]:
    """Describe the devices that the run computes on."""
    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def compute_type() -> str:
    """Say what `backbone.dtype` is on this machine, and whether another choice would pay."""
    auto = f"auto is {hardware.compute_type('auto')}"
    if hardware.platform() != "cpu":
        return hardware.compute_type_note("auto") or auto
    if hardware.bfloat16_products():
        return (
            f"{auto}; bfloat16 takes about half the time: this CPU has instructions for it"
            " (docs/performance.md)"
        )
    return f"{auto}; bfloat16 would not pay: this CPU has no AVX512-BF16 and no AMX"
