"""Training step at 1024 pixels: peak memory with and without rematerialisation.

    python benchmarks/resolution.py                 every model of configs/table3.py
    python benchmarks/resolution.py sam dinov2      some of them

One step of the real program on a CPU: the classifier, the augmentation and the optimizer of
configs/table3.py in float32, with random weights and a batch of one image, in a process of its own.
Peak memory is the resident set of that process, Python and the compiler included. "Planned" is
XLA's own figure for activations and other values inside the step, known before it runs: a step
that would not fit into this machine is compiled and not run. Writes
`benchmarks/results/resolution_cpu.json`, row by row, and prints a table.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "resolution_cpu.json"
MODELS = ("sam", "seem", "openclip", "dinov2", "blip")
REMAT = {"kept": False, "recomputed": True}
CLASSES = 5


def take_a_step(model: str, remat: bool) -> dict[str, Any]:
    """Take one step of one model in this process, and measure it."""
    import jax
    import numpy as np

    from fmi_jax import parallel
    from fmi_jax.data.labels import Label
    from fmi_jax.data.registry import DATASETS
    from fmi_jax.run.assembly import assemble, augmentation, placement_of
    from fmi_jax.run.network import initial_arrays
    from fmi_jax.tasks.classification import Multiclass
    from fmi_jax.training import optim
    from fmi_jax.training.step import initial_state, make_train_step

    spec = importlib.util.spec_from_file_location("table3", ROOT / "configs" / "table3.py")
    table3 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table3)
    config = table3.get_config(f"aptos2019,{model}")
    config.backbone.weights = ""
    config.backbone.remat = remat
    config.backbone.drop_path = 0.0  # with a single image it would drop whole blocks
    config.optim.accumulate = 1

    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    assembly = assemble(config, channels=3, num_classes=CLASSES)
    placement = placement_of(assembly, config, mesh)
    schedule = optim.relative_rate(config.optim, warmup=0, total_steps=1)
    optimizer = optim.make_optimizer(config.optim, schedule)
    step = make_train_step(
        assembly.partition,
        optimizer,
        schedule,
        augmentation(assembly, config, DATASETS["aptos2019"], Label.INDEX),
        loss=Multiclass().loss,
        accumulate=1,
        mesh=mesh,
        placement=placement,
        dtype=assembly.execution.dtype,
    )
    arrays = initial_arrays(assembly, config, placement)
    state = initial_state(
        assembly.partition,
        arrays,
        optimizer,
        mesh,
        placement,
        learning_rate=config.optim.learning_rate,
        seed=0,
    )
    del arrays
    size = config.data.prepared_size
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    ones, index = np.ones(1, np.float32), np.zeros(1, np.int32)
    batch = {"inputs": images, "labels": index + 2, "mask": ones, "index": index}
    batch = parallel.to_devices(mesh, batch)

    start = time.perf_counter()
    compiled = step.lower(state, {}, batch).compile()
    found = {
        "image_size": config.image_size,
        "params": sum(x.size for x in state.params.values()),
        "compile_seconds": time.perf_counter() - start,
        "planned_mb": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }
    if 2**20 * (found["planned_mb"] + resident_mb()) > 0.85 * os.sysconf(
        "SC_PHYS_PAGES"
    ) * os.sysconf("SC_PAGE_SIZE"):
        return found
    before = {name: np.array(x.reshape(-1)[:999]) for name, x in state.params.items()}
    start = time.perf_counter()
    state, scalars = jax.block_until_ready(compiled(state, {}, batch))
    same = [n for n, x in before.items() if np.array_equal(state.params[n].reshape(-1)[:999], x)]
    return found | {
        "step_seconds": time.perf_counter() - start,
        "peak_mb": resident_mb(),
        "loss": float(scalars["loss"]),
        "grad_norm": float(scalars["grad_norm"]),
        "unchanged": same,
    }


def resident_mb() -> float:
    """Highest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(model: str, remat: bool) -> dict[str, Any]:
    """Run `take_a_step` in a fresh process."""
    command = [sys.executable, __file__, model, "--step", "recomputed" if remat else "kept"]
    # One device, and huge pages as in `run.py`.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def main(models: list[str]) -> None:
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for model in models:
        rows = {}
        for name, remat in REMAT.items():
            rows[name] = measure(model, remat)
            print(f"{model}, {name}: {json.dumps(rows[name])}", file=sys.stderr, flush=True)
        report[model] = {
            "what": f"{rows['kept']['image_size']} pixels, batch 1, float32",
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "load": os.getloadavg()[0],
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
            **rows,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(
        "| model | pixels | peak memory, kept | recomputed | planned by XLA | recomputed | step |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in models:
        row = report[model]
        cells = [
            f"{row[name][key] / 1024:.1f} GB" if key in row[name] else "does not fit"
            for key in ("peak_mb", "planned_mb")
            for name in REMAT
        ]
        seconds = [
            f"{r['step_seconds']:.0f} s" if "loss" in r else "-" for r in map(row.get, REMAT)
        ]
        size = row["kept"]["image_size"]
        print(f"| {model} | {size} | {' | '.join(cells)} | {', '.join(seconds)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--step", choices=REMAT, help="take one step in this process")
    flags = parser.parse_args()
    if unknown := sorted(set(flags.models) - set(MODELS)):
        parser.error(f"unknown model {unknown[0]!r}; expected one of {', '.join(MODELS)}")
    if flags.step:
        print(json.dumps(take_a_step(flags.models[0], REMAT[flags.step])))
    else:
        main(flags.models or list(MODELS))
