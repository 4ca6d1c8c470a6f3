"""Every pre-training on eight devices, with parameters copied or divided: it is that on one.

The steps are along the gradient. Adam divides by the size of a gradient, and that of a bias before
a batch norm is nothing but rounding.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import LOSS_ON_DEVICES, SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.aot import hlo, traffic
from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import set_fields
from fmi_jax.protocols.registry import FITS
from fmi_jax.protocols.spec import Pixels
from fmi_jax.run.assembly import assemble
from fmi_jax.training.loop import Plan
from fmi_jax.training.partition import named_values
from fmi_jax.training.step import Augment, initial_state, make_train_step

BATCH, STEPS, RATE, CLASSES = 16, 5, 0.03, 2
PLAN = Plan(total_steps=STEPS, steps_per_epoch=2.5, evaluate_at=frozenset(), save_at=frozenset())
NETWORKS = {
    "deit_nano": {"image_size": 16, "backbone.last_block": 0, "backbone.drop_path": 0.2},
    "resnet_nano": {"image_size": 32},
}
CASES = [("dino", "resnet_nano"), *((name, "deit_nano") for name in FITS)]


def config_of(protocol: str, network: str) -> ExperimentConfig:
    config = ExperimentConfig(protocol=protocol)
    small = {**FITS[protocol].small, "backbone.name": network, "backbone.dtype": "float32"}
    local = {"dino.local_crops": 2, "dino.local_size": 8} if network == "deit_nano" else {}
    set_fields(config, {**small, **(local if protocol == "dino" else {}), **NETWORKS[network]})
    if protocol == "mae":
        config.mae.mask_ratio = 0.5
    return config


def views(config: ExperimentConfig) -> Augment:
    """Two global and two local views with noise from the image's own key: quick to compile."""
    side = config.image_size

    def change(keys: jax.Array, batch: dict[str, Any]) -> dict[str, Any]:
        images = batch["inputs"] / 127.5 - 1
        noise = jax.vmap(lambda key: jax.random.normal(key, (4, side, side, 3)))(keys)
        seen = images[:, None] + 0.5 * noise
        inputs = (seen[:, :2], seen[:, 2:, :8, :8]) if config.dino.local_crops else (seen[:, :2],)
        return batch | {"inputs": inputs}

    return change


@dataclasses.dataclass
class Trained:
    """Scalars of every step, every array after the last, and what crosses devices.

    Attributes:
      moved: shapes of the results of each kind of collective in the compiled step.
    """

    scalars: list[dict[str, float]]
    arrays: dict[str, np.ndarray]
    divided: set[str]
    moved: dict[str, set[tuple[int, ...]]]


def train(config: ExperimentConfig, devices: int, strategy: str = "replicated") -> Trained:
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    assembly = assemble(config, 3, CLASSES)
    fit, parts = assembly.fit, assembly.partition
    placement = parallel.parameter_shardings(mesh, parts.shapes(tuple(parts.variables)), strategy)
    drawn = named_values(assembly.create(jax.random.key(7)))
    arrays = {
        name: parallel.place(np.asarray(drawn[fit.begins(name) or name]), placement[name])
        for name in drawn
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale(-1.0))
    state = initial_state(
        parts, arrays, optimizer, mesh, placement,
        learning_rate=RATE, seed=3,
    )  # fmt: skip
    assert fit.augment is not None
    assert fit.task is not None
    pixels = Pixels(config, (0.5,) * 3, (0.25,) * 3, jnp.float32)
    step = make_train_step(
        parts, optimizer, lambda step: 1.0,
        fit.augment(pixels) if config.protocol == "mae" else views(config),
        loss=fit.task.loss, accumulate=1, mesh=mesh, placement=placement, dtype=jnp.float32,
        follow=None if fit.follow is None else fit.follow(PLAN), logged=fit.logged,
    )  # fmt: skip
    rng, scalars, compiled = np.random.default_rng(1), [], None
    for _ in range(STEPS):
        batch: Any = {
            "inputs": rng.integers(0, 256, (BATCH, *2 * (config.image_size,), 3), np.uint8),
            "mask": np.ones(BATCH, np.float32),
            "index": np.arange(BATCH, dtype=np.int32),
        }
        placed = parallel.to_devices(mesh, batch)
        compiled = compiled or step.lower(state, {}, placed).compile()  # type: ignore[attr-defined]
        state, said = compiled(state, {}, placed)
        scalars.append({name: float(value) for name, value in said.items()})
    found = jax.device_get(state.params | state.followers)
    moved: dict[str, set[tuple[int, ...]]] = {}
    for instruction, *_ in hlo.read(compiled.as_text()).running():
        if instruction.opcode in traffic.COLLECTIVES:
            shapes = {shape.dims for shape in instruction.shapes}
            moved[instruction.opcode] = moved.get(instruction.opcode, set()) | shapes
    return Trained(scalars, found, {n for n, x in placement.items() if any(x.spec)}, moved)


@pytest.mark.parametrize(("protocol", "network"), CASES)
def test_eight_devices_pretrain_as_one(protocol: str, network: str) -> None:
    config = config_of(protocol, network)
    one = train(config, 1)
    for strategy in ("replicated", "fsdp"):
        eight = train(config, 8, strategy)
        assert bool(eight.divided) == (strategy == "fsdp")
        # Arrays of the model cross devices, and nothing of images: no logits, no features.
        shapes = {(), *(value.shape for value in one.arrays.values())}
        whole = eight.moved.pop("all-reduce") | eight.moved.pop("all-gather", set())
        assert whole <= shapes
        assert set(eight.moved) == ({"reduce-scatter"} if strategy == "fsdp" else set())
        for ours, theirs in zip(one.scalars, eight.scalars, strict=True):
            assert theirs == pytest.approx(ours, rel=LOSS_ON_DEVICES, abs=SAME_FLOAT32)
        for name, value in one.arrays.items():
            np.testing.assert_allclose(
                eight.arrays[name], value, rtol=LOSS_ON_DEVICES, atol=SAME_FLOAT32, err_msg=name
            )
