"""A step of DINO on a CPU: ours beside PyTorch's, and beside the backbone's own passes.

    python benchmarks/multi_crop.py deit_small
    python benchmarks/multi_crop.py resnet50 --rounds 5

The shapes are the official repository's: two views of 224 and eight of 96 pixels, a head of 2,048,
2,048, 256 and 65,536. The sides, each in a process of its own and in turn on the same two cores:

* `torch`: eager PyTorch on timm's backbone; every resolution is one batch, the teacher sees the
  global views; loss, centre, AdamW, clipping, moving averages. Its views are given: what PyTorch
  needs to make them is not counted.
* `ours`: the whole step of `run.py`, which also makes the views from 256 x 256 pixels.
* `networks`: ours without views, loss, centre and moving averages: the passes of both backbones and
  heads, the student's gradient, AdamW.
* `backbone`: the same without heads. What views, loss and moving averages add is `ours` less
  `networks`, and a share of `backbone`.

A round gives one time of each. Writes `benchmarks/results/multi_crop_<cpu>.json`, and prints a
table of medians and of ratios in a round.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.train_step import RESULTS, THREADS, cpu_name, fastest, results_file

BATCH, CALLS = 4, 2
GLOBAL, LOCAL, LOCALS = 224, 96, 8
HIDDEN, BOTTLENECK, PROTOTYPES = 2048, 256, 65536
TIMM = {"deit_small": "vit_small_patch16_224", "resnet50": "resnet50"}


def config_of(backbone: str) -> Any:
    from fmi_jax.config import ExperimentConfig

    config = ExperimentConfig(protocol="dino", image_size=GLOBAL)
    config.backbone.name, config.backbone.dtype = backbone, "float32"
    config.train.batch_size = BATCH
    config.optim.clip_norm, config.optim.clip_by = 3.0, "tensor"
    config.dino.prototypes, config.dino.hidden_width = PROTOTYPES, HIDDEN
    config.dino.local_crops, config.dino.local_size = LOCALS, LOCAL
    return config


def ours(backbone: str) -> dict[str, float]:
    import jax
    import numpy as np

    from fmi_jax import parallel
    from fmi_jax.protocols.spec import Pixels
    from fmi_jax.run.assembly import assemble, placement_of
    from fmi_jax.run.network import initial_arrays
    from fmi_jax.training import optim
    from fmi_jax.training.loop import Plan
    from fmi_jax.training.step import initial_state, make_train_step

    config = config_of(backbone)
    assembly, mesh = assemble(config, 3, 2), parallel.make_mesh()
    fit, placement = assembly.fit, placement_of(assembly, config, mesh)
    plan = Plan(
        total_steps=1000, steps_per_epoch=10.0, evaluate_at=frozenset(), save_at=frozenset()
    )
    schedule = optim.relative_rate(config.optim, 0, plan.total_steps)
    optimizer = optim.make_optimizer(config.optim, schedule)
    assert fit.task is not None
    assert fit.follow is not None
    assert fit.augment is not None
    step = make_train_step(
        assembly.partition,
        optimizer,
        schedule,
        fit.augment(Pixels(config, (0.5,) * 3, (0.25,) * 3, np.float32)),
        loss=fit.task.loss,
        accumulate=1,
        mesh=mesh,
        placement=placement,
        dtype=assembly.execution.dtype,
        follow=fit.follow(plan),
        logged=fit.logged,
    )
    state = initial_state(
        assembly.partition,
        initial_arrays(assembly, config, placement),
        optimizer,
        mesh,
        placement,
        learning_rate=1e-4,
        seed=0,
    )
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.integers(0, 256, (BATCH, 256, 256, 3), np.uint8),
        "labels": np.zeros(BATCH, np.int32),
        "mask": np.ones(BATCH, np.float32),
        "index": np.arange(BATCH, dtype=np.int32),
    }

    def train() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(step(state, {}, batch))

    return fastest(train, CALLS)


def passes(backbone: str, *, heads: bool) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx

    from fmi_jax.models.base import Execution, create
    from fmi_jax.models.registry import BACKBONES
    from fmi_jax.protocols.dino import ProjectionHead

    spec, options = BACKBONES[backbone], config_of(backbone).dino
    arch = spec.arch.sized(GLOBAL, GLOBAL)
    arch = arch.truncated(arch.num_blocks - 1)

    class Network(nnx.Module):
        def __init__(self, seed: int):
            self.backbone = create(spec.family, arch, Execution(), seed=seed)
            if heads:
                width, rngs = arch.feature_width, nnx.Rngs(params=seed)
                self.head = ProjectionHead(width, options, dtype=np.float32, rngs=rngs)

    networks = [Network(seed) for seed in (0, 1)]
    graphdef, student, stats = nnx.split(networks[0], nnx.Param, nnx.BatchStat)
    _, teacher, _ = nnx.split(networks[1], nnx.Param, nnx.BatchStat)
    optimizer = optax.adamw(1e-4)
    rng = np.random.default_rng(0)
    crops = [
        rng.normal(size=(count * BATCH, side, side, 3)).astype(np.float32)
        for count, side in ((2, GLOBAL), (LOCALS, LOCAL))
    ]

    def outputs(params: Any, stats: Any, images: Any) -> tuple[Any, Any]:
        model = nnx.merge(graphdef, params, stats, copy=True)
        rngs = nnx.Rngs(dropout=0)
        found = jnp.concatenate([model.backbone.features(x, rngs=rngs).pooled for x in images])
        return model.head(found) if heads else found, nnx.state(model, nnx.BatchStat)

    def update(params: Any, stats: Any, opt_state: Any, teacher: Any, images: Any) -> Any:
        seen, _ = outputs(teacher, stats, images[:1])
        values, back, stats = jax.vjp(
            lambda params: outputs(params, stats, images), params, has_aux=True
        )
        (grads,) = back(values)  # any gradient will do
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, seen

    step = jax.jit(update, donate_argnums=(0, 1, 2))
    state = (student, stats, jax.jit(optimizer.init)(student))

    def train() -> None:
        nonlocal state
        *done, _ = jax.block_until_ready(step(*state, teacher, crops))
        state = tuple(done)

    return fastest(train, CALLS)


def in_torch(backbone: str) -> dict[str, float]:
    import torch

    # timm imports torchvision, whose compiled operators CPU-only installs may lack.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm
    from torch.nn import functional

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)

    def network() -> Any:
        options = {} if backbone.startswith("resnet") else {"dynamic_img_size": True}
        body = timm.create_model(TIMM[backbone], num_classes=0, **options)
        head = torch.nn.Sequential(
            torch.nn.Linear(body.num_features, HIDDEN),
            torch.nn.GELU(),
            torch.nn.Linear(HIDDEN, HIDDEN),
            torch.nn.GELU(),
            torch.nn.Linear(HIDDEN, BOTTLENECK),
        )
        prototypes = torch.nn.Linear(BOTTLENECK, PROTOTYPES, bias=False)
        return torch.nn.ModuleList([body, head, prototypes])

    def logits(parts: Any, groups: Any) -> Any:
        body, head, prototypes = parts
        features = torch.cat([body(images) for images in groups])
        projected = functional.normalize(head(features), dim=-1)
        return functional.linear(projected, functional.normalize(prototypes.weight, dim=-1))

    student, teacher = network(), network()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    centre = torch.zeros(1, PROTOTYPES)
    crops = [
        torch.randn(count * BATCH, 3, side, side) for count, side in ((2, GLOBAL), (LOCALS, LOCAL))
    ]
    teacher.train()
    student.train()

    def train() -> None:
        nonlocal centre
        with torch.no_grad():
            said = logits(teacher, crops[:1])
            targets = functional.softmax((said - centre) / 0.04, dim=-1).chunk(2)
        heard = (logits(student, crops) / 0.1).chunk(2 + LOCALS)
        terms = [
            torch.sum(-target * functional.log_softmax(view, dim=-1), dim=-1).mean()
            for i, target in enumerate(targets)
            for j, view in enumerate(heard)
            if i != j
        ]
        loss = sum(terms) / len(terms)
        optimizer.zero_grad()
        loss.backward()
        for parameter in student.parameters():
            torch.nn.utils.clip_grad_norm_([parameter], 3.0)
        optimizer.step()
        with torch.no_grad():
            centre = 0.9 * centre + 0.1 * said.mean(0, keepdim=True)
            for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                ours.mul_(0.996).add_(theirs, alpha=0.004)

    return fastest(train, CALLS)


SIDES = {
    "torch": in_torch,
    "ours": ours,
    "networks": functools.partial(passes, heads=True),
    "backbone": functools.partial(passes, heads=False),
}


def measure(side: str, backbone: str) -> dict[str, float]:
    """Measure the seconds of a step of one side, in a fresh process."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    env |= {"OMP_NUM_THREADS": str(THREADS), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    command = [sys.executable, __file__, backbone, "--side", side]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(backbone: str, rounds: int) -> None:
    """Measure every side in every round, write the results and print a table."""
    found: list[dict[str, dict[str, float]]] = []
    for i in range(rounds):
        order = list(SIDES) if i % 2 == 0 else list(SIDES)[::-1]
        found.append({side: measure(side, backbone) for side in order})
        print(f"round {i + 1} of {rounds}: {json.dumps(found[-1])}", file=sys.stderr, flush=True)
    path = results_file().with_name(results_file().name.replace("train_step", "multi_crop"))
    report = json.loads(path.read_text()) if path.exists() else {}
    report[backbone] = {
        "machine": cpu_name(),
        "batch": BATCH,
        "load": os.getloadavg()[0],
        "rounds": found,
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"| {backbone}, batch {BATCH} | | ratio of ours | lowest to highest |")
    print("| --- | --- | --- | --- |")
    for key, words in (("", "s"), ("_processor", "s of processor time")):
        for side in SIDES:
            seconds = statistics.median(one[side][key] for one in found)
            ratios = [one["ours"][key] / one[side][key] for one in found]
            print(
                f"| {side} | {seconds:.2f} {words} | {statistics.median(ratios):.2f}"
                f" | {min(ratios):.2f} to {max(ratios):.2f} |"
            )
        added = [(one["ours"][key] - one["networks"][key]) / one["backbone"][key] for one in found]
        low, middle, high = (f"{f(added):.1%}" for f in (min, statistics.median, max))
        print(f"| added, of the backbone's {words} | {middle} | {low} to {high} | |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", choices=TIMM)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    flags = parser.parse_args()
    if flags.side:
        if hasattr(os, "sched_setaffinity"):  # before either library counts its cores
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
        print(json.dumps(SIDES[flags.side](flags.backbone)))
    else:
        main(flags.backbone, flags.rounds)
