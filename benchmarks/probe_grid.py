"""Time of a training step with many linear heads on one frozen backbone, beside that with one.

    python benchmarks/probe_grid.py                         every row
    python benchmarks/probe_grid.py dinov2_vits14           one of them

Steps of 1, 4 and 20 heads (4 learning rates, 4 rates x 5 seeds) run in turn in one process, on
the same uint8 batch, augmentation included. A round gives one time of each, and the ratios to the
time of one head. One head is the step of `linear_probe`, not a grid of one. Writes
`benchmarks/results/probe_grid_<platform>.json`, row by row, and prints a table.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fmi_jax import augment, parallel
from fmi_jax.config import ExperimentConfig
from fmi_jax.models.base import Execution
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.heads.head_grid import ProbeGridConfig
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import Parts
from fmi_jax.settings import AugmentConfig
from fmi_jax.study.spec import RATES
from fmi_jax.tasks.classification import Multiclass
from fmi_jax.training import optim, side_by_side
from fmi_jax.training.partition import named_values, partition
from fmi_jax.training.step import initial_state, make_train_step, on_inputs

CLASSES = 5
SEEDS = {1: 0, 4: 1, 20: 5}  # seeds by number of heads; 0: the linear probe
RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Row:
    """A backbone at an image size; the mean over `steps` steps is one time."""

    title: str
    backbone: str
    image_size: int
    batch: int
    steps: int


ROWS = {
    "deit_nano": Row("ViT of 2 blocks, width 64", "deit_nano", 32, 64, 20),
    "dinov2_vits14": Row("DINOv2 ViT-S/14", "dinov2_vits14", 224, 8, 2),
    "dinov2_vitb14": Row("DINOv2 ViT-B/14", "dinov2_vitb14", 224, 8, 1),
}


def trainer(row: Row, heads: int) -> Callable[[], None]:
    """Make a function that takes `row.steps` training steps."""
    name = "probe_grid" if SEEDS[heads] else "linear_probe"
    grid = ProbeGridConfig(learning_rates=RATES, seeds=max(1, SEEDS[heads]))
    config = ExperimentConfig(protocol=name, probe_grid=grid)
    spec = BACKBONES[row.backbone]
    arch = spec.arch.sized(row.image_size, row.image_size)
    arch = arch.truncated(arch.num_blocks - 1)
    trained = PROTOCOLS[name].fit
    assert trained is not None
    fit = trained.fit(config, arch)

    def create() -> nnx.Module:
        rngs = nnx.Rngs(0)
        backbone: Any = spec.family
        parts = Parts(
            backbone=backbone(arch, Execution(), rngs=rngs),
            transformer=None,
            num_classes=CLASSES,
            config=config,
            rngs=rngs,
        )
        return fit.module(parts)

    mesh = parallel.make_mesh()
    structure = partition(nnx.eval_shape(create), fit.learns, fit.follows)
    placement = parallel.parameter_shardings(
        mesh, structure.shapes(tuple(structure.variables)), "replicated"
    )
    arrays = jax.jit(lambda: named_values(create()), out_shardings=placement)()
    frozen = {name: arrays.pop(name) for name in structure.frozen}

    schedule = optim.relative_rate(config.optim, 10, 1000)
    rate, optimizer = RATES[0], optim.make_optimizer(config.optim, schedule)
    if fit.heads:
        rate = [head.learning_rate for head in fit.heads]
        optimizer = optim.side_by_side(optimizer)
    state = initial_state(structure, arrays, optimizer, mesh, placement, learning_rate=rate, seed=0)
    loss = Multiclass().loss
    step = make_train_step(
        structure,
        optimizer,
        schedule,
        on_inputs(
            functools.partial(
                augment.augment,
                config=AugmentConfig(),
                image_size=row.image_size,
                mean=(0.5,) * 3,
                std=(0.25,) * 3,
                dtype=np.float32,
            )
        ),
        loss=side_by_side.each(loss) if fit.heads else loss,
        accumulate=1,
        mesh=mesh,
        placement=placement,
        dtype=np.float32,
    )
    rng, size = np.random.default_rng(0), row.image_size * 8 // 7
    batch = {
        "inputs": rng.integers(0, 256, (row.batch, size, size, 3), np.uint8),
        "labels": rng.integers(0, CLASSES, row.batch).astype(np.int32),
        "mask": np.ones(row.batch, np.float32),
        "index": np.arange(row.batch, dtype=np.int32),
    }
    placed = parallel.to_devices(mesh, batch)  # type: ignore[arg-type]

    def train() -> None:
        nonlocal state
        for _ in range(row.steps):
            state, scalars = step(state, frozen, placed)
        jax.block_until_ready(scalars)

    return train


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(row: Row, rounds: int) -> list[dict[int, float]]:
    """Measure seconds per step by number of heads, in every round."""
    trainers = {heads: trainer(row, heads) for heads in SEEDS}
    for train in trainers.values():
        train()  # compiles
    return [
        {heads: seconds(train) / row.steps for heads, train in trainers.items()}
        for _ in range(rounds)
    ]


def main(names: list[str], rounds: int) -> None:
    device = jax.devices()[0]
    path = RESULTS / f"probe_grid_{device.platform}.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        row, load = ROWS[name], os.getloadavg()[0]
        results = measure(row, rounds)
        ratios = {
            str(heads): [result[heads] / result[1] for result in results]
            for heads in SEEDS
            if heads > 1
        }
        report[name] = {
            "what": f"{row.title}, {row.image_size} pixels, batch {row.batch}",
            "machine": f"{device.device_kind}, {platform.system()} {platform.machine()}",
            "load_before": load,
            "versions": {"jax": jax.__version__},
            "seconds_per_step": {
                str(heads): statistics.median(result[heads] for result in results)
                for heads in SEEDS
            },
            "ratio": {heads: statistics.median(values) for heads, values in ratios.items()},
            "ratio_range": {heads: [min(v), max(v)] for heads, v in ratios.items()},
        }
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report[name]), file=sys.stderr, flush=True)
    print("| | one head | 4 heads | 20 heads |")
    print("| --- | --- | --- | --- |")
    for name in names:
        found = report[name]
        cells = [
            f"{found['ratio'][n]:.2f} ({' to '.join(f'{x:.2f}' for x in found['ratio_range'][n])})"
            for n in ("4", "20")
        ]
        print(f"| {found['what']} | {found['seconds_per_step']['1']:.3f} s | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    if unknown := sorted(set(flags.rows) - set(ROWS)):
        parser.error(f"unknown row {unknown[0]!r}; expected one of {', '.join(ROWS)}")
    main(flags.rows or list(ROWS), flags.rounds)
