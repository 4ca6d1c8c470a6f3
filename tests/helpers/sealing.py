"""Changes to sealed files that pass for what the program wrote."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmi_jax.artifacts import sealed


@contextmanager
def resealed(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the values of a file; what the block makes of them is written with a new seal."""
    values = json.loads(path.read_text())
    del values[sealed.SEAL]
    yield values
    sealed.write(path, values)
