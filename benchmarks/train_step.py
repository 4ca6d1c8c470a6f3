"""Forward pass and training step in float32 on a CPU: ours beside PyTorch's.

    python benchmarks/train_step.py                 every row
    python benchmarks/train_step.py deit_base       one of them

PyTorch runs eager, with the code that published the backbone or timm's: a linear classifier of
five classes on the feature that the study reads, trained by clipped AdamW. Both sides have huge
pages (as `run.py` sets them) and run in turn, each in a process of its own, on the same two cores;
a round gives one time of each, and a ratio. Writes `benchmarks/results/train_step_cpu.json`,
row by row, and prints a table.
"""

import argparse
import dataclasses
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
CLASSES = 5
RESULTS = Path(__file__).parent / "results" / "train_step_cpu.json"
PACKAGES = ("jax", "flax", "torch", "timm", "torchvision", "segment-anything")


@dataclasses.dataclass(frozen=True)
class Row:
    """A backbone at a size; `calls` are timed after a first one, the fastest counts."""

    title: str
    backbone: str
    image_size: int
    batch: int
    calls: int


ROWS = {
    "deit_base": Row("DeiT-B", "deit_base", 224, 8, 3),
    "resnet152": Row("ResNet-152", "resnet152", 224, 8, 3),
    "focalnet_tiny": Row("FocalNet-T (LRF)", "focalnet_tiny", 224, 8, 3),
    "sam_vit_b": Row("SAM ViT-B", "sam_vit_b", 224, 8, 3),
    "sam_vit_b_1024": Row("SAM ViT-B", "sam_vit_b", 1024, 1, 1),
}


def fastest(call: Callable[[], object], calls: int) -> float:
    """Seconds; the first call, which compiles and allocates, does not count."""
    call()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_ours(row: Row) -> dict[str, float]:
    import jax
    import numpy as np
    import optax
    from flax import nnx

    from fmi_jax.models.base import Execution, create
    from fmi_jax.models.registry import BACKBONES

    class Classifier(nnx.Module):
        def __init__(self):
            spec = BACKBONES[row.backbone]
            arch = spec.arch.sized(row.image_size, row.image_size)
            arch = arch.truncated(arch.num_blocks - 1)  # without what no feature depends on
            self.backbone = create(spec.family, arch, Execution(), seed=0)
            self.head = nnx.Linear(arch.feature_width, CLASSES, rngs=nnx.Rngs(1))

        def __call__(self, images, rngs):
            return self.head(self.backbone.features(images, rngs=rngs).pooled)

    rng = np.random.default_rng(0)
    images = rng.normal(size=(row.batch, row.image_size, row.image_size, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, row.batch)
    graphdef, params, stats = nnx.split(Classifier(), nnx.Param, nnx.BatchStat)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=1e-2))

    @jax.jit
    def forward(params, stats, images):
        return nnx.merge(graphdef, params, stats)(images, None)

    def loss(params, stats, images, labels):
        model = nnx.merge(graphdef, params, stats, copy=True)  # its statistics change
        logits = model(images, nnx.Rngs(dropout=0))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, nnx.state(model, nnx.BatchStat)

    def update(params, stats, opt_state, images, labels):
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    step = jax.jit(update, donate_argnums=(0, 1, 2))
    forward_time = fastest(lambda: forward(params, stats, images).block_until_ready(), row.calls)
    forward_mb = peak_mb()
    state = (params, stats, jax.jit(optimizer.init)(params))
    del params, stats

    def train() -> None:
        nonlocal state
        state = jax.block_until_ready(step(*state, images, labels))

    return {"forward": forward_time, "forward_mb": forward_mb, "step": fastest(train, row.calls)}


def measure_torch(row: Row) -> dict[str, float]:
    import torch

    # timm imports torchvision, whose compiled operators CPU-only installs may lack.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    import torchvision

    class SAM(torch.nn.Module):
        def __init__(self):
            super().__init__()
            from functools import partial

            from segment_anything.modeling import ImageEncoderViT

            self.encoder = ImageEncoderViT(
                img_size=row.image_size,
                embed_dim=768,
                depth=12,
                num_heads=12,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                qkv_bias=True,
                use_rel_pos=True,
                window_size=14,
                global_attn_indexes=(2, 5, 8, 11),
                out_chans=256,
            )
            self.head = torch.nn.Linear(768, CLASSES)

        def forward(self, images):
            x = self.encoder.patch_embed(images) + self.encoder.pos_embed
            for block in self.encoder.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = {
        "deit_base": lambda: timm.create_model("deit_base_patch16_224", num_classes=CLASSES),
        "resnet152": lambda: torchvision.models.resnet152(num_classes=CLASSES),
        "focalnet_tiny": lambda: timm.create_model("focalnet_tiny_lrf", num_classes=CLASSES),
        "sam_vit_b": SAM,
    }[row.backbone]()
    images = torch.randn(row.batch, 3, row.image_size, row.image_size)
    labels = torch.randint(0, CLASSES, (row.batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-2)

    @torch.no_grad()
    def forward() -> None:
        model(images)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.eval()
    forward_time = fastest(forward, row.calls)
    forward_mb = peak_mb()
    model.train()
    return {"forward": forward_time, "forward_mb": forward_mb, "step": fastest(train, row.calls)}


SIDES = {"ours": measure_ours, "torch": measure_torch}


def measure(side: str, row: str) -> dict[str, float]:
    """Seconds per call and peak resident memory in MB, of one side in a fresh process."""
    command = [sys.executable, __file__, row, "--side", side]
    # Other variables may turn on things that only one of the two sides knows.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    env |= {"OMP_NUM_THREADS": str(THREADS), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


KEYS = {
    "forward": ("forward", "s"),
    "step": ("training step", "s"),
    "forward_mb": ("peak memory, forward", "MB"),
    "step_mb": ("peak memory, training", "MB"),
}


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


def main(names: list[str], rounds: int) -> None:
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        row, results = ROWS[name], []
        load = os.getloadavg()[0]
        for i in range(rounds):
            order = ("torch", "ours") if i % 2 == 0 else ("ours", "torch")
            results.append({side: measure(side, name) for side in order})
            done = json.dumps(results[-1])
            print(f"{name}, round {i + 1} of {rounds}: {done}", file=sys.stderr, flush=True)
        report[name] = {
            "what": f"{row.title}, {row.image_size} pixels, batch {row.batch}, float32,"
            f" {THREADS} threads",
            "machine": f"{cpu_name()}, {platform.system()} {platform.machine()}",
            "load_before": load,
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
            "rounds": results,
            **{key: spread(results, key) for key in KEYS},
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print("| | | fmi_jax | PyTorch eager | ratio | lowest to highest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        for key, (label, unit) in KEYS.items():
            cell = report[name][key]
            digits = 2 if unit == "s" else 0
            print(
                f"| {report[name]['what'].partition(', float32')[0]} | {label}"
                f" | {cell['ours']:.{digits}f} {unit} | {cell['torch']:.{digits}f} {unit}"
                f" | {cell['ratio']:.2f} | {cell['ratio_min']:.2f} to {cell['ratio_max']:.2f} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    flags = parser.parse_args()
    if unknown := sorted(set(flags.rows) - set(ROWS)):
        parser.error(f"unknown row {unknown[0]!r}; expected one of {', '.join(ROWS)}")
    if flags.side:
        if hasattr(os, "sched_setaffinity"):  # before either library counts its cores
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
        measured = SIDES[flags.side](ROWS[flags.rows[0]])
        print(json.dumps(measured | {"step_mb": peak_mb()}))
    else:
        main(flags.rows or list(ROWS), flags.rounds)
