"""DINO's loss, head, moving averages and schedules from the inputs of a case."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmi_jax.protocols import dino, pretraining
from fmi_jax.protocols.dino import DinoConfig, ProjectionHead
from fmi_jax.settings import OptimConfig
from fmi_jax.tasks.self_supervision import Distillation, SelfSupervision, log_targets
from fmi_jax.training import optim
from fmi_jax.training.loop import Plan
from weights_convert.read import read_checkpoint

_Arrays = Mapping[str, np.ndarray]
_GLOBAL = 2  # views of the teacher
_LAYERS = {"mlp.0": "fc1", "mlp.2": "fc2", "mlp.4": "fc3"}


def dino_ssl(meta: Mapping[str, Any], arrays: _Arrays, folder: Path) -> dict[str, np.ndarray]:
    """Compute every array of a case."""
    config = meta["config"]
    (tensors,) = read_checkpoint(folder / "checkpoint.pth").groups.values()
    found: dict[str, Any] = {}
    for name, of_set in config["loss"].items():
        found |= {f"{name}/{k}": v for k, v in _loss(of_set, arrays, f"{name}/").items()}
    found |= {f"head/{k}": v for k, v in _head(config["head"], tensors, arrays).items()}
    for momentum in config["ema"]["momentum"]:
        found[f"ema/teacher_after_{momentum}"] = _averaged(momentum, arrays)
    found |= {f"schedules/{k}": _schedule(k, v) for k, v in config["schedules"].items()}
    return {name: np.asarray(value) for name, value in found.items()}


def _by_epoch(epochs: int) -> Plan:
    return Plan(
        total_steps=epochs, steps_per_epoch=1.0, evaluate_at=frozenset(), save_at=frozenset()
    )


def _loss(config: Mapping[str, Any], arrays: _Arrays, of: str) -> dict[str, Any]:
    options = DinoConfig(
        teacher_temperature=(config["warmup_teacher_temp"], config["teacher_temp"]),
        temperature_epochs=config["warmup_teacher_temp_epochs"],
        centre_momentum=config["center_momentum"],
    )
    temperature = dino.temperature(options, config["epoch"], _by_epoch(config["nepochs"]))
    centre = jnp.asarray(arrays[f"{of}center"][0])

    def by_image(rows: Any, views: int) -> Any:
        return rows.reshape(views, -1, rows.shape[-1]).swapaxes(0, 1)

    def by_view(rows: Any) -> Any:
        return rows.swapaxes(0, 1).reshape(-1, rows.shape[-1])

    def mean_loss(student: Any) -> tuple[Any, Any]:
        outputs = Distillation(
            by_image(student, config["views"]),
            by_image(jnp.asarray(arrays[f"{of}teacher_output"]), _GLOBAL),
            centre,
            jnp.float32(temperature),
        )
        losses, seen = SelfSupervision(config["student_temp"]).loss(outputs, {})
        return losses.mean(), (seen["teacher"].mean(0), jnp.exp(log_targets(outputs)))

    student = jnp.asarray(arrays[f"{of}student_output"])
    step = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    (loss, (said, probabilities)), gradient = step(student)
    follow = dino.follow(options, _by_epoch(config["nepochs"]))
    moved = follow({}, {"centre": centre}, {"teacher": said}, jnp.int32(config["epoch"]))
    return {
        "loss": loss,
        "grad_student_output": gradient,
        "new_center": moved["centre"][None],
        "teacher_probabilities": by_view(probabilities),
        "teacher_temperature": temperature,
    }


def _head(config: Mapping[str, Any], tensors: _Arrays, arrays: _Arrays) -> dict[str, Any]:
    options = DinoConfig(
        prototypes=config["out_dim"],
        hidden_width=config["hidden_dim"],
        bottleneck_width=config["bottleneck_dim"],
    )
    head = ProjectionHead(config["in_dim"], options, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for theirs, ours in _LAYERS.items():
        layer = getattr(head, ours)
        layer.kernel[...] = jnp.asarray(tensors[f"{theirs}.weight"]).T
        layer.bias[...] = jnp.asarray(tensors[f"{theirs}.bias"])
    head.prototypes[...] = jnp.asarray(tensors["last_layer.weight_v"]).T
    graph, params = nnx.split(head, nnx.Param)
    features, cotangent = (jnp.asarray(arrays[f"head/{n}"]) for n in ("features", "grad_cotangent"))

    def loss(params: Any, features: Any) -> tuple[Any, Any]:
        head = nnx.merge(graph, params)
        logits = head(features)
        return (logits * cotangent).sum(), (head.project(features), logits)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (projected, logits)), (gradient, of_features) = step(params, features)
    found = {
        "bottleneck": projected,
        "output": logits,
        "grad_loss": value,
        "grad_features": of_features,
        "grad/last_layer.weight_v": gradient["prototypes"][...].T,
    }
    for theirs, ours in _LAYERS.items():
        found[f"grad/{theirs}.weight"] = gradient[ours]["kernel"][...].T
        found[f"grad/{theirs}.bias"] = gradient[ours]["bias"][...]
    return found


def _averaged(momentum: float, arrays: _Arrays) -> Any:
    follow = dino.follow(DinoConfig(momentum=momentum), _by_epoch(1))
    followers = {
        "teacher.head.x": jnp.asarray(arrays["ema/teacher"]),
        "centre": jnp.zeros(1),
    }
    params = {"head.x": jnp.asarray(arrays["ema/student"])}
    return follow(params, followers, {"teacher": jnp.zeros(1)}, jnp.int32(0))["teacher.head.x"]


def _schedule(name: str, config: Mapping[str, Any]) -> Any:
    if config["kind"] == "teacher":
        options = DinoConfig(
            teacher_temperature=(config["warmup"], config["final"]),
            temperature_epochs=config["warmup_epochs"],
        )
        epochs = config["epochs"]
        return [dino.temperature(options, i, _by_epoch(epochs)) for i in range(epochs)]
    per_epoch = config.get("iterations_per_epoch")
    total = config["iterations"] if per_epoch is None else config["epochs"] * per_epoch
    steps = np.arange(total)
    if name.startswith("momentum"):
        return pretraining.momentum(config["base"], steps / total)
    if name.startswith("weight_decay"):
        decay = OptimConfig(weight_decay=config["base"], weight_decay_end=config["final"])
        by_step = optim.decay_by_step(decay, total)
        assert by_step is not None
        return by_step(steps)
    rate = OptimConfig(
        learning_rate=config["base"],
        schedule="cosine",
        cosine_end=config["final"] / config["base"],
    )
    warmup = config["warmup_epochs"] * per_epoch
    # The reference begins at rate 0 and has the full rate twice: its warm-up is ours, shorter by
    # one step and a step later. After it both are the same.
    rising = optim.relative_rate(rate, warmup - 1, total)(steps[:warmup] - 1)
    falling = optim.relative_rate(rate, warmup, total)(steps[warmup:])
    return config["base"] * np.concatenate([rising, falling])
