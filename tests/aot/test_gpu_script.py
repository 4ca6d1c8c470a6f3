"""`benchmarks/gpu.py` as far as a CPU goes: the dry run, and what it can do without."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "gpu.py"


def test_the_dry_run_compares_and_times(tmp_path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, SCRIPT, "--tiny", "--families", "deit_nano", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    (family,) = results["families"]
    assert family["agrees"]
    assert 0.99 < family["cosine"] < 1  # two types, one network
    (row,) = results["rows"]
    assert row["ours"]["seconds"] > 0
    assert row["ours"]["flops"] > 0
    assert row["timm"]["seconds"] > 0


def test_a_family_that_fails_is_named() -> None:
    found = gpu.compared("deit_giant", argparse.Namespace(tiny=True))
    assert not found["agrees"]
    assert found["line"].startswith("deit_giant: bfloat16 FAILED: ")
    assert "deit_base" in found["error"]  # a near valid choice


def test_nothing_begins_when_the_time_is_over() -> None:
    command = [sys.executable, SCRIPT, "--tiny", "--minutes", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["0 minutes are over: the rest is left out."] * 2


NEEDED = """
import sys
for name in ("grain", "tensorflow_datasets", "orbax", "jaxtyping", "h5py", "PIL", "safetensors"):
    sys.modules[name] = None  # as where it is not installed
from benchmarks import gpu
ours = gpu.training("deit_nano", 32, 2, "float32", blocks=1)
ours.step.lower(ours.state, {}, ours.batch)
"""


def test_it_needs_no_data_pipeline() -> None:
    command = [sys.executable, "-c", NEEDED]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=SCRIPT.parent.parent
    )
    assert done.returncode == 0, done.stderr
