"""Masks of large images by windows: time and peak memory of one image.

    python benchmarks/windows.py

The network is that of configs/unet.py with a ResNet-50, in float32 with random weights; its windows
have 512 pixels. Each row is the step that `fmi-jax predict --masks` calls, in a process of its own,
on one image of noise. Peak memory is the resident set of that process, Python and the compiler
included; "planned" is XLA's own figure for values inside the step. Writes
`benchmarks/results/windows_cpu.json` and prints a table.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "windows_cpu.json"
SIZE = 512
ROWS = ((512, 512, 0.5), (584, 565, 0.5), (1024, 1024, 0.5), (3000, 3000, 0.25), (3000, 3000, 0.5))
"""Height and width of an image in pixels, and overlap of windows."""


def see(height: int, width: int, overlap: float) -> dict[str, Any]:
    """Predict the mask of one image in this process, and measure it."""
    import jax
    import numpy as np

    from fmi_jax import parallel
    from fmi_jax.augment.evaluation_views import window_starts
    from fmi_jax.data.registry import DATASETS
    from fmi_jax.run.assembly import assemble, evaluation_step, placement_of
    from fmi_jax.run.network import initial_arrays
    from fmi_jax.tasks.segmentation import Segmentation

    config = runpy.run_path(str(ROOT / "configs" / "unet.py"))["get_config"]()
    config.backbone.name, config.backbone.dtype = "resnet50", "float32"
    config.image_size, config.data.prepared_size = SIZE, height
    config.views.name, config.views.overlap = "windows", overlap
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    task = Segmentation(("background", "vessel"))
    assembly = assemble(config, 3, len(task.classes))
    placement = placement_of(assembly, config, mesh)
    arrays = initial_arrays(assembly, config, placement)
    measured = evaluation_step(assembly, config, DATASETS["aptos2019"], task, mesh, placement)
    step = jax.jit(lambda arrays, batch: measured(arrays, batch)["predicted_map"])
    images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    batch = {
        "inputs": images,
        "labels": np.zeros((1, height, width), np.uint8),
        "mask": np.ones(1, np.float32),
        "index": np.zeros(1, np.int32),
    }
    batch = parallel.to_devices(mesh, batch)
    start = time.perf_counter()
    compiled = step.lower(arrays, batch).compile()
    compile_seconds, start = time.perf_counter() - start, time.perf_counter()
    found = np.asarray(compiled(arrays, batch))
    seconds = time.perf_counter() - start
    assert found.shape == (1, height, width)
    rows, columns = (len(window_starts(side, SIZE, overlap)) for side in (height, width))
    return {
        "height": height,
        "width": width,
        "overlap": overlap,
        "windows": rows * columns,
        "compile_seconds": compile_seconds,
        "seconds": seconds,
        "planned_mb": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measure every row in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", type=int, default=-1, help=argparse.SUPPRESS)
    row = parser.parse_args().row
    if row >= 0:
        print(json.dumps(see(*ROWS[row])))
        return
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    found = []
    for row in range(len(ROWS)):
        command = [sys.executable, __file__, "--row", str(row)]
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
        )
        found.append(json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]})
        print(found[-1], file=sys.stderr, flush=True)
    report = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "jax": importlib.metadata.version("jax"),
        "rows": found,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{'image':>12} overlap windows seconds planned MB peak MB")
    for one in found:
        image = f"{one['height']} x {one['width']}"
        print(
            f"{image:>12} {one['overlap']:7} {one['windows']:7} {one['seconds']:7.1f}"
            f" {one['planned_mb']:10.0f} {one['peak_mb']:7.0f}"
        )


if __name__ == "__main__":
    main()
