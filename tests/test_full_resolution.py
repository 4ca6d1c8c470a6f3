"""A training step at 1024 pixels and full size, of every model of the study that was so trained."""

import importlib.util
import math
import re
from pathlib import Path

import pytest

_PATH = Path(__file__).parent.parent / "benchmarks" / "resolution.py"
_SPEC = importlib.util.spec_from_file_location("resolution", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
resolution = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(resolution)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", resolution.MODELS)
def test_a_step_at_full_resolution(model: str) -> None:
    found = resolution.measure(model, remat=True)
    assert found["image_size"] == (1022 if model == "dinov2" else 1024)
    assert found["params"] > 25e6
    assert "loss" in found, "it would not fit into the memory of this machine"
    assert math.isfinite(found["loss"])
    assert 0 < found["grad_norm"] < math.inf
    # SEEM has a norm for the map of each stage, and the head reads the last.
    assert all(re.fullmatch(r"backbone\.norms\.[012]\.\w+", name) for name in found["unchanged"])
    assert len(found["unchanged"]) == (6 if model == "seem" else 0)
