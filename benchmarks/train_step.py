"""A training step of DeiT-B at 224 pixels, batch 8, float32 on CPU: ours beside PyTorch's.

    python benchmarks/train_step.py

PyTorch is timm's `deit_base_patch16_224`, eager, with `torch.optim.AdamW`. Both sides clip the
gradient, both have huge pages (as `run.py` sets them), and they run in turn, each in a process of
its own, on the same two cores; a round gives one time of each, and a ratio. Writes
`benchmarks/results/train_step_cpu.json` and prints it as a table.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

THREADS = 2
BATCH = 8
CLASSES = 5
CALLS = 3  # timed calls of each function in a process; the fastest counts
RESULTS = Path(__file__).parent / "results" / "train_step_cpu.json"


def fastest(call: Callable[[], object]) -> float:
    """Seconds; the first call, which compiles and allocates, does not count."""
    call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_ours() -> dict[str, float]:
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from fmi_jax.models.base import Execution, create
    from fmi_jax.models.registry import BACKBONES

    class Classifier(nnx.Module):
        def __init__(self):
            spec = BACKBONES["deit_base"]
            self.backbone = create(spec.family, spec.arch, Execution(), seed=0)
            self.head = nnx.Linear(spec.arch.feature_width, CLASSES, rngs=nnx.Rngs(1))

        def __call__(self, images):
            return self.head(self.backbone.features(images).pooled)

    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 224, 224, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, BATCH)
    graphdef, params = nnx.split(Classifier())
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=1e-2))

    @jax.jit
    def forward(params, images):
        return nnx.merge(graphdef, params)(images)

    def loss(params, images, labels):
        logits = nnx.merge(graphdef, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(params, opt_state, images, labels):
        grads = jax.grad(loss)(params, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step = jax.jit(update, donate_argnums=(0, 1))
    forward_time = fastest(lambda: forward(params, images).block_until_ready())
    state = (params, jax.jit(optimizer.init)(params))
    del params

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(step(*state, images, labels))

    return {"forward": forward_time, "step": fastest(train)}


def measure_torch() -> dict[str, float]:
    import torch

    # timm imports torchvision, whose compiled operators CPU-only installs may lack.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = timm.create_model("deit_base_patch16_224", num_classes=CLASSES)
    images = torch.randn(BATCH, 3, 224, 224)
    labels = torch.randint(0, CLASSES, (BATCH,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-2)

    @torch.no_grad()
    def forward() -> None:
        model(images)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"forward": fastest(forward), "step": fastest(train)}


SIDES = {"ours": measure_ours, "torch": measure_torch}


def measure(side: str) -> dict[str, float]:
    """Seconds per call and peak resident memory in MB, of one side in a fresh process."""
    command = [sys.executable, __file__, "--side", side]
    # Other variables may turn on things that only one of the two sides knows.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    env |= {"OMP_NUM_THREADS": str(THREADS), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(rounds: list[dict[str, dict[str, float]]], key: str) -> dict[str, float]:
    """Median of both sides, and median, lowest and highest of the per-round ratios."""
    ratios = [r["ours"][key] / r["torch"][key] for r in rounds]
    return {
        "ours": statistics.median(r["ours"][key] for r in rounds),
        "torch": statistics.median(r["torch"][key] for r in rounds),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(rounds: int) -> None:
    load = os.getloadavg()[0]
    results = []
    for i in range(rounds):
        order = ("torch", "ours") if i % 2 == 0 else ("ours", "torch")
        results.append({side: measure(side) for side in order})
        print(f"round {i + 1} of {rounds}: {json.dumps(results[-1])}", file=sys.stderr, flush=True)
    report = {
        "what": f"DeiT-B, 224 pixels, batch {BATCH}, float32, CPU, {THREADS} threads",
        "machine": f"{cpu_name()}, {platform.system()} {platform.machine()}",
        "load_before": load,
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "flax", "torch", "timm")},
        "rounds": results,
        **{key: spread(results, key) for key in ("forward", "step", "peak_mb")},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print("| | ours | PyTorch | ratio | lowest to highest |\n|---|---|---|---|---|")
    for key, label, unit in (
        ("forward", "forward", "s"),
        ("step", "training step", "s"),
        ("peak_mb", "peak memory", "MB"),
    ):
        row = report[key]
        digits = 2 if unit == "s" else 0
        print(
            f"| {label} | {row['ours']:.{digits}f} {unit} | {row['torch']:.{digits}f} {unit}"
            f" | {row['ratio']:.2f} | {row['ratio_min']:.2f} to {row['ratio_max']:.2f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(f"\n{report['what']}; {report['machine']}; {versions}; {rounds} rounds.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    flags = parser.parse_args()
    if flags.side:
        if hasattr(os, "sched_setaffinity"):  # before either library counts its cores
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
        measured = SIDES[flags.side]()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(measured | {"peak_mb": peak}))
    else:
        main(flags.rounds)
