"""AdamW, warm-up and learning-rate schedules, as in the published studies."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fmi_jax.settings import OptimConfig

Schedule = Callable[[Any], Any]

_TINY = 1e-30  # least norm, of a gradient that is zero


class Held(NamedTuple):
    """Parameters that do not learn in the first steps, as DINO's last layer.

    Attributes:
      names: predicate on a name.
      steps: number of these steps.
    """

    names: Callable[[str], bool]
    steps: int


def warmup_steps(config: OptimConfig, steps_per_epoch: float) -> int:
    """Length of the warm-up in steps."""
    return config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)


def relative_rate(
    config: OptimConfig, warmup: int, total_steps: int, steps_per_epoch: float = 1.0
) -> Schedule:
    """Schedule of the share of the full learning rate (`TrainState.learning_rate`) by step.

    Step `i` of a warm-up over `w` steps has `(i + 1) / w` of the full rate. So step `w - 1` is the
    first at the full rate and no step has rate 0. The study's code overshoots by 1/w and doubles
    the rate without warm-up (B15 in docs/protocols.md). After warm-up, "cosine" falls to
    `cosine_end` at `total_steps`; "constant" and "plateau" stay at 1 (plateau lowers the full rate
    itself). "cosine_by_epoch" is the third study's: constant within an epoch, and an epoch has the
    rate of the cosine at the beginning of the one before, so that the first two have the full rate.
    """

    def schedule(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        rate = jnp.float32(1)
        if config.schedule == "cosine":
            progress = (step - warmup) / max(1, total_steps - warmup)
            rate = _cosine(1.0, config.cosine_end, jnp.clip(progress, 0.0, 1.0))
        elif config.schedule == "cosine_by_epoch":
            # Half a step is added as divisions are rounded: an epoch begins at its nearest step.
            epoch = jnp.floor((step - warmup + 0.5) / steps_per_epoch)
            progress = (epoch - 1) * steps_per_epoch / max(1, total_steps - warmup)
            rate = _cosine(1.0, config.cosine_end, jnp.clip(progress, 0.0, 1.0))
        if warmup:
            rate = jnp.where(step < warmup, (step + 1) / warmup, rate)
        return rate

    return schedule


def make_optimizer(
    config: OptimConfig,
    schedule: Schedule,
    *,
    weight_decay: Schedule | None = None,
    held: Held | None = None,
) -> optax.GradientTransformation:
    """Make the optimizer: clip by norm, then Adam with decay on tensors of rank > 1.

    Its learning rate is 1. The training step multiplies the updates by the actual rate, so the
    compiled program does not contain it: all rates and seeds of an experiment share one program.

    Rank > 1 is the study's rule: position and class tokens are decayed; biases, norms and layer
    scales are not. Betas and epsilon are those of torch.optim.AdamW. With `config.layer_decay`
    every parameter has its own learning rate, and with it its own decay: see `layer_factors`.

    Args:
      config: options.
      schedule: share of the full learning rate by step.
      weight_decay: weight decay by step; None: that of the config at every step.
      held: parameters that do not learn in the first steps.
    """
    decay = optax.add_decayed_weights(
        config.weight_decay if weight_decay is None else weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    return optax.chain(
        _clip(config),
        *([decay] if config.decay == "l2" else []),
        adam if held is None else _each_from_its_first_gradient(adam, held),
        *([decay] if config.decay == "decoupled" else []),
        *([] if held is None else [_held_still(held)]),
        *([_scale_by_layer(config.layer_decay)] if config.layer_decay != 1 else []),
        optax.scale_by_learning_rate(schedule),
    )


def _clip(config: OptimConfig) -> optax.GradientTransformation:
    limit = config.clip_norm
    if not limit:
        return optax.identity()
    if config.clip_by == "global":
        return optax.clip_by_global_norm(limit)
    return optax.stateless_with_tree_map(
        lambda grad, _: grad * jnp.minimum(1.0, limit / jnp.maximum(optax.tree.norm(grad), _TINY))
    )


def _cosine(start: float, end: float, progress: Any) -> Any:
    """Value on half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def decay_by_step(config: OptimConfig, total_steps: int) -> Schedule | None:
    """Schedule of the weight decay; None if it does not change."""
    start, end = config.weight_decay, config.weight_decay_end
    return (lambda step: _cosine(start, end, step / total_steps)) if end else None


def _each_from_its_first_gradient(
    adam: optax.GradientTransformation, held: Held
) -> optax.GradientTransformation:
    """Adam whose moments and bias correction begin for the held parameters when they are let go."""
    later = optax.conditionally_mask(adam, lambda step: step >= held.steps)  # type: ignore[arg-type]
    return optax.partition(
        {True: later, False: adam}, lambda params: {name: held.names(name) for name in params}
    )


def _held_still(held: Held) -> optax.GradientTransformation:
    """Leave the held parameters as they are, also undecayed, in the first steps."""

    def init(params: Any) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> Any:
        del params
        done: Any = state.count
        free = done >= held.steps
        found = {
            name: jnp.where(free, update, 0) if held.names(name) else update
            for name, update in updates.items()
        }
        return found, optax.ScaleByScheduleState(optax.safe_increment(done))

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


_BLOCKS = "backbone.blocks."
_AFTER_THE_BLOCKS = ("norm", "norms", "proj", "neck")  # treated like the head, as in BEiT
_BEFORE_THE_BLOCKS = (
    *("patch_embed", "pos_embed", "cls_token", "dist_token", "register_tokens", "norm_pre"),
    *("stem", "conv1", "bn1"),
)
_HEADS = ("head", "pool", "projector", "transformer")


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    """Learning-rate factor of each parameter: `decay` once per layer below the head.

    The rule is BEiT's (arXiv 2106.08254, `optim_factory.py`), introduced by ELECTRA: 1 for the
    head and everything else after the last block, `decay ** (n - i)` for block i of n (stages, in
    backbones whose blocks are stages), `decay ** (n + 1)` for everything before the blocks.

    Args:
      names: native names of the parameters that learn; must include those of the last block.
      decay: factor per layer, more than 0 and at most 1.

    Raises:
      ValueError: a parameter belongs to none of these groups; its layer must be written down.
    """
    names = tuple(names)
    n = 1 + max((_block(name) for name in names if name.startswith(_BLOCKS)), default=-1)

    def layers_above(name: str) -> int:
        if name.startswith(_BLOCKS):
            return n - _block(name)
        part, *rest = name.split(".")
        if part in _HEADS or (part == "backbone" and rest[0] in _AFTER_THE_BLOCKS):
            return 0
        if part == "backbone" and rest[0] in _BEFORE_THE_BLOCKS:
            return n + 1
        raise ValueError(
            f"layer decay does not know where {name} stands: expected {_BLOCKS}..., one of"
            f" {', '.join(_HEADS)}, or of a backbone {', '.join(_BEFORE_THE_BLOCKS)} before its"
            f" blocks and {', '.join(_AFTER_THE_BLOCKS)} after them (fmi_jax/training/optim.py)."
        )

    return {name: decay ** layers_above(name) for name in names}


def _block(name: str) -> int:
    return int(name.removeprefix(_BLOCKS).split(".")[0])


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any) -> Any:
        factors = layer_factors(updates, decay)
        return {name: factors[name] * update for name, update in updates.items()}

    return optax.stateless(scale)


def side_by_side(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Vectorise an optimizer over models stacked in the first axis of every parameter.

    Each model clips by its own norm and has its own state.
    """
    return optax.GradientTransformation(jax.vmap(optimizer.init), jax.vmap(optimizer.update))  # type: ignore[arg-type]
