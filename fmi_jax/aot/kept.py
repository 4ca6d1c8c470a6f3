"""Cache of compiled programs, so that the same program is not compiled twice.

jax's own cache does not work here: an executable for a GPU that is not attached cannot be read
back.
"""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import os
import time
from pathlib import Path
from typing import Any

import jax

from fmi_jax import atomic
from fmi_jax.aot.program import Program

_VERSIONS = ("jaxlib", "libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """Text, memory and cost of a compiled program.

    Attributes:
      text: optimised HLO.
      arguments, temporaries, peak: bytes of the arguments, bytes needed beside them, and the most
        bytes held at once.
      costs: compiler's own figures ("flops", "bytes accessed"); empty if it gives none.
      seconds: time that compiling took.
    """

    text: str
    arguments: int
    temporaries: int
    peak: int
    costs: dict[str, float]
    seconds: float


def compiled(program: Program, lowered: Any) -> Compiled:
    """Compile `lowered`, the lowering of `program`, or read it from the cache.

    The cache is in the user's cache folder; its key is the program's text, the target and the
    versions of the compilers. Failed compilations are not cached.
    """
    what = {
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest(),
        "target": dataclasses.astuple(program.target),
        "optimization": program.optimization,
        "flags": os.environ.get("XLA_FLAGS", ""),
        "versions": [importlib.metadata.version(name) for name in _VERSIONS],
    }
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fmi_jax" / "aot"
    path = folder / f"{key}.json.gz"
    try:
        return Compiled(**json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, ValueError, TypeError):  # missing, or written by another version of this file
        made = _compile(program, lowered)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, gzip.compress(json.dumps(dataclasses.asdict(made)).encode(), 3))
    return made


def _compile(program: Program, lowered: Any) -> Compiled:
    jax.config.update("jax_optimization_level", program.optimization or "UNKNOWN")
    start = time.perf_counter()
    result = lowered.compile()
    seconds = time.perf_counter() - start
    memory, costs = result.memory_analysis(), result.cost_analysis() or {}
    return Compiled(
        text=result.as_text(),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        costs={name: costs[name] for name in ("flops", "bytes accessed") if name in costs},
        seconds=seconds,
    )
