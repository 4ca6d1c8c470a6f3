"""Forward pass and training step on a CPU: ours beside PyTorch's.

    python benchmarks/train_step.py                 every row
    python benchmarks/train_step.py deit_base       one of them
    python benchmarks/train_step.py deit_base --sides ours_bfloat16 torch_bfloat16

The sides: ours and eager PyTorch in float32; both in bfloat16 (PyTorch's by autocast, parameters
in float32 on both sides); `torch.compile` and ONNX Runtime in float32, forward only. PyTorch runs
the code that published the backbone, or timm's: a linear classifier of five classes on the feature
that the study reads, trained by clipped AdamW. All use huge pages (as `run.py` sets them) and run
in turn, each in a process of its own, on the same two cores. A round gives one time of each, and a
ratio to eager PyTorch in float32. Processor time is measured too: other programs on the machine
stretch it less. Writes `benchmarks/results/train_step_<cpu>.json`, row by row, and prints a table.
`torch.compile` needs a C++ compiler, ONNX Runtime `pip install '.[bench]'`.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

THREADS = 2
CLASSES = 5
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "torch", "timm", "torchvision", "segment-anything", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Row:
    """A backbone at an image size; the fastest of `calls` calls after the first counts."""

    title: str
    backbone: str
    image_size: int
    batch: int
    calls: int


ROWS = {
    "deit_base": Row("DeiT-B", "deit_base", 224, 8, 3),
    "dinov2_base": Row("DINOv2-B", "dinov2_vitb14", 224, 8, 3),
    "resnet152": Row("ResNet-152", "resnet152", 224, 8, 3),
    "focalnet_tiny": Row("FocalNet-T (LRF)", "focalnet_tiny", 224, 8, 3),
    "convnext_tiny": Row("ConvNeXt-T", "convnext_tiny", 224, 8, 3),
    "sam_vit_b": Row("SAM ViT-B", "sam_vit_b", 224, 8, 3),
    "sam_vit_b_1024": Row("SAM ViT-B", "sam_vit_b", 1024, 1, 1),
}


def fastest(call: Callable[[], object], calls: int) -> dict[str, float]:
    """Seconds of wall-clock and processor time; the first call, which compiles, does not count."""
    call()
    clock, processor = [], []
    for _ in range(calls):
        start, used = time.perf_counter(), time.process_time()
        call()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {"": min(clock), "_processor": min(processor)}


def named(prefix: str, seconds: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in seconds.items()}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_ours(row: Row, dtype: str) -> dict[str, float]:
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
            arch = arch.truncated(arch.num_blocks - 1)  # removes parts that no feature depends on
            self.backbone = create(spec.family, arch, Execution(dtype=np.dtype(dtype)), seed=0)
            self.head = nnx.Linear(arch.feature_width, CLASSES, rngs=nnx.Rngs(1))

        def __call__(self, images, rngs):
            pooled = self.backbone.features(images, rngs=rngs).pooled
            return self.head(pooled.astype(np.float32))

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

    return named("forward", forward_time) | named("step", fastest(train, row.calls)) | {
        "forward_mb": forward_mb,
        "step_mb": peak_mb(),
    }  # fmt: skip


def measure_torch(row: Row, kind: str) -> dict[str, float]:
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
    half = torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16")
    model = {
        "deit_base": lambda: timm.create_model("deit_base_patch16_224", num_classes=CLASSES),
        "dinov2_vitb14": lambda: timm.create_model(
            "vit_base_patch14_dinov2", num_classes=CLASSES, img_size=row.image_size
        ),
        "resnet152": lambda: torchvision.models.resnet152(num_classes=CLASSES),
        "focalnet_tiny": lambda: timm.create_model("focalnet_tiny_lrf", num_classes=CLASSES),
        "convnext_tiny": lambda: timm.create_model("convnext_tiny", num_classes=CLASSES),
        "sam_vit_b": SAM,
    }[row.backbone]()
    images = torch.randn(row.batch, 3, row.image_size, row.image_size)
    labels = torch.randint(0, CLASSES, (row.batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-2)

    run = torch.compile(model) if kind == "compile" else model

    @torch.no_grad()
    def forward() -> None:
        with half:
            run(images)

    def train() -> None:
        optimizer.zero_grad()
        with half:
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.eval()
    if kind == "onnx":
        forward = onnx_forward(model, images)
    found = named("forward", fastest(forward, row.calls)) | {"forward_mb": peak_mb()}
    if kind in ("compile", "onnx"):
        return found
    model.train()
    return found | named("step", fastest(train, row.calls)) | {"step_mb": peak_mb()}


def onnx_forward(model, images) -> Callable[[], object]:
    """Make a function that runs `model` in ONNX Runtime."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.onnx"
        torch.onnx.export(model, (images,), file, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


SIDES: dict[str, Callable[[Row], dict[str, float]]] = {
    "torch": lambda row: measure_torch(row, "float32"),
    "ours": lambda row: measure_ours(row, "float32"),
    "ours_bfloat16": lambda row: measure_ours(row, "bfloat16"),
    "torch_bfloat16": lambda row: measure_torch(row, "bfloat16"),
    "torch_compile": lambda row: measure_torch(row, "compile"),
    "onnxruntime": lambda row: measure_torch(row, "onnx"),
}


def measure(side: str, row: str) -> dict[str, float]:
    """Measure seconds per call and peak resident memory in MB, of one side in a fresh process."""
    command = [sys.executable, __file__, row, "--side", side]
    # Other variables might enable something that only one of the two sides supports.
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    env |= {"OMP_NUM_THREADS": str(THREADS), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


KEYS = {
    "forward": ("forward", "s"),
    "step": ("training step", "s"),
    "forward_processor": ("processor time, forward", "s"),
    "step_processor": ("processor time, training", "s"),
    "forward_mb": ("peak memory, forward", "MB"),
    "step_mb": ("peak memory, training", "MB"),
}


def spread(rounds: list[dict[str, dict[str, float]]], side: str, key: str) -> dict[str, float]:
    """Median of a side, and median, lowest and highest of its ratios to PyTorch in a round."""
    ratios = [r[side][key] / r["torch"][key] for r in rounds]
    return {
        "median": statistics.median(r[side][key] for r in rounds),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def results_file() -> Path:
    """Path of the results, named by the CPU: "AMD EPYC" writes `train_step_amd_epyc.json`."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", cpu_name().lower()))
    return RESULTS / f"train_step_{'_'.join(words)}.json"


def main(names: list[str], sides: list[str], rounds: int) -> None:
    path = results_file()
    report = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        row, results = ROWS[name], []
        load = os.getloadavg()
        for i in range(rounds):
            order = sides if i % 2 == 0 else sides[::-1]
            results.append({side: measure(side, name) for side in order})
            done = json.dumps(results[-1])
            print(f"{name}, round {i + 1} of {rounds}: {done}", file=sys.stderr, flush=True)
        report[name] = {
            "what": f"{row.title}, {row.image_size} pixels, batch {row.batch}, {THREADS} threads",
            "machine": f"{cpu_name()}, {platform.system()} {platform.machine()}",
            "load_before_and_after": [load[0], os.getloadavg()[0]],
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
            "rounds": results,
            "sides": {
                side: {key: spread(results, side, key) for key in KEYS if key in results[0][side]}
                for side in sides
            },
        }
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
    print("| | | side | | ratio to PyTorch, float32 | lowest to highest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        for key, (label, unit) in KEYS.items():
            for side, cells in report[name]["sides"].items():
                if key not in cells:
                    continue
                cell, digits = cells[key], 2 if unit == "s" else 0
                print(
                    f"| {report[name]['what']} | {label} | {side}"
                    f" | {cell['median']:.{digits}f} {unit} | {cell['ratio']:.2f}"
                    f" | {cell['ratio_min']:.2f} to {cell['ratio_max']:.2f} |"
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sides", nargs="+", choices=SIDES, default=list(SIDES), help="beside torch; default: all"
    )
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    flags = parser.parse_args()
    if unknown := sorted(set(flags.rows) - set(ROWS)):
        parser.error(f"unknown row {unknown[0]!r}; expected one of {', '.join(ROWS)}")
    if flags.side:
        if hasattr(os, "sched_setaffinity"):  # before either library counts its cores
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
        print(json.dumps(SIDES[flags.side](ROWS[flags.rows[0]])))
    else:
        sides = ["torch", *(side for side in flags.sides if side != "torch")]
        main(flags.rows or list(ROWS), sides, flags.rounds)
