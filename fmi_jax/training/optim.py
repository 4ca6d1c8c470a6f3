"""AdamW, warm-up and schedules, as the studies train (REFERENCE 1.1.6)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fmi_jax.config import OptimConfig

Schedule = Callable[[Any], Any]


def warmup_steps(config: OptimConfig, steps_per_epoch: float) -> int:
    """Length of the warm-up in steps."""
    return config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)


def learning_rate(config: OptimConfig, warmup: int, total_steps: int) -> Schedule:
    """Learning rate of step 0, 1, ...

    Step `i` of a warm-up over `w` steps has `(i + 1) / w` of the full rate, so that step
    `w - 1` is the first at the full rate and no step has rate 0 (the reference overshoots by
    1/w and, without warm-up, doubles the rate). After it, "cosine" falls to 0 at
    `total_steps`; "constant" and "plateau" stay (the plateau factor is `TrainState.lr_scale`).
    """

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.float32(config.learning_rate)
        if config.schedule == "cosine":
            progress = (step - warmup) / max(1, total_steps - warmup)
            rate = rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        if warmup:
            rate = jnp.where(step < warmup, config.learning_rate * (step + 1) / warmup, rate)
        return rate

    return schedule


def make_optimizer(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with decay on tensors of rank > 1.

    Rank > 1 is the study's rule: position and class tokens are decayed, biases, norms and layer
    scales are not. Betas and epsilon are those of torch.optim.AdamW.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
        ),
        optax.scale_by_learning_rate(schedule),
    )
