"""Cost of the host: dispatching a step of a 12-block ViT.

    python benchmarks/host.py

The step has DeiT's structure (152 parameter arrays) at a width of 12. Its arithmetic takes almost
no time, so its time is dispatch. Prints the median of 200 steps.
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmi_jax import parallel
from fmi_jax.config import ExperimentConfig
from fmi_jax.models.base import Execution, create
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.protocols.spec import Parts
from fmi_jax.settings import OptimConfig
from fmi_jax.tasks.classification import Multiclass
from fmi_jax.training import optim
from fmi_jax.training.partition import partition
from fmi_jax.training.step import initial_state, make_train_step, on_inputs


def step_overhead() -> float:
    """Median seconds of a step whose arithmetic is negligible."""
    spec, trained = BACKBONES["deit_base"], PROTOCOLS["finetune"].fit
    assert trained is not None
    arch = dataclasses.replace(spec.arch, width=12, num_heads=2, mlp_width=12, grid_size=1)
    fit = trained.fit(ExperimentConfig(), arch)

    def build() -> nnx.Module:
        backbone = create(spec.family, arch, Execution(), seed=0)
        return fit.module(
            Parts(
                backbone=backbone,
                transformer=None,
                num_classes=5,
                config=ExperimentConfig(),
                rngs=nnx.Rngs(0),
            )
        )

    parts = partition(nnx.eval_shape(build), fit.learns)
    mesh = parallel.make_mesh()
    config = OptimConfig()
    schedule = optim.relative_rate(config, 0, 1000)
    optimizer = optim.make_optimizer(config, schedule)
    placement = dict.fromkeys(parts.variables, parallel.replicated(mesh))
    arrays = parts.read(build(), tuple(parts.variables))
    state = initial_state(
        parts, arrays, optimizer, mesh, placement, learning_rate=config.learning_rate, seed=0
    )
    step = make_train_step(
        parts, optimizer, schedule, on_inputs(lambda keys, images: images.astype(jnp.float32)),
        loss=Multiclass().loss, accumulate=1, mesh=mesh, placement=placement,
        dtype=jnp.float32,
    )  # fmt: skip
    batch = {
        "inputs": np.zeros((1, 16, 16, 3), np.uint8),
        "labels": np.zeros(1, np.int32),
        "mask": np.ones(1, np.float32),
        "index": np.zeros(1, np.int32),
    }
    times = []
    for _ in range(220):
        start = time.perf_counter()
        state, scalars = step(state, {}, parallel.to_devices(mesh, batch))
        jax.block_until_ready(scalars)
        times.append(time.perf_counter() - start)
    return statistics.median(times[20:])


if __name__ == "__main__":
    print(f"step overhead: {1e3 * step_overhead():.1f} ms")
