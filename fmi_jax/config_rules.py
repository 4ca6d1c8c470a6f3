"""Rules for the values of config fields."""

from typing import Any

from fmi_jax.config import ExperimentConfig, check_types
from fmi_jax.errors import UsageError

_CHOICES = {
    "backbone.stem": ("sum", "mean", "first"),
    "backbone.dtype": ("auto", "float32", "bfloat16"),
    "backbone.attention": ("auto", "plain"),
    "optim.schedule": ("constant", "cosine", "plateau"),
    "train.sharding": ("replicated", "fsdp"),
    "cka.features": ("all", "cls", "patches", "pooled"),
    "cka.estimator": ("summed", "averaged", "exact"),
    "cka.split": ("train", "val", "test"),
}
_POSITIVE = (
    "image_size",
    "data.prepared_size",
    "optim.learning_rate",
    "optim.accumulate",
    "train.epochs",
    "train.batch_size",
    "train.eval_every_epochs",
    "train.log_every_steps",
    "train.model_parallel",
    "probe_grid.seeds",
    "logistic.max_iterations",
    "lora.rank",
    "lora.alpha",
    "cka.batch_size",
    "timing.batch_size",
    "timing.repeats",
)
_POSITIVE_LISTS = ("probe_grid.learning_rates", "knn.k", "knn.temperature", "logistic.c")
_NOT_NEGATIVE = (
    "augment.brightness",
    "augment.contrast",
    "augment.saturation",
    "augment.hue",
    "augment.rotation_degrees",
    "augment.affine_degrees",
    "attentive.num_heads",
    "data.threads",
    "data.workers",
    "data.shots",
    "data.subset_seed",
    "backbone.frozen_blocks",
    "optim.weight_decay",
    "optim.warmup_steps",
    "optim.warmup_epochs",
    "optim.plateau_patience",
    "optim.clip_norm",
    "train.max_steps",
    "train.eval_batch_size",
    "train.checkpoint_every_steps",
    "train.bootstrap_samples",
)
_FRACTIONS = (
    "augment.flip_horizontal",
    "augment.flip_vertical",
    "augment.rotation_probability",
    "augment.jitter_probability",
    "augment.grayscale_probability",
    "augment.blur_probability",
    "augment.affine_probability",
    "augment.perspective_probability",
    "augment.perspective_distortion",
    "augment.solarize_probability",
    "augment.erase_probability",
    "backbone.drop_path",
)
_FACTORS = ("augment.center_crop", "data.fraction", "optim.layer_decay")
_LORA_TARGETS = ("q", "v", "proj", "mlp")
_RANGES = (  # low and high, both above 0
    "augment.crop_scale",
    "augment.crop_ratio",
    "augment.blur_sigma",
    "augment.affine_scale",
    "augment.erase_area",
)


def validate(config: ExperimentConfig) -> None:
    """Raise one `UsageError` that lists every invalid value of `config`.

    Values are first converted to the types of their fields (`config.check_types`).
    """
    check_types(config)

    def value(name: str) -> Any:
        target = config
        for part in name.split("."):
            target = getattr(target, part)
        return target

    wrong = []
    for name, choices in _CHOICES.items():
        if name == "backbone.dtype" and value(name) == "float16":
            wrong.append(
                "backbone.dtype='float16': its largest number is 65504, which gradients and"
                " activations exceed without loss scaling; expected bfloat16 or float32"
            )
        elif value(name) not in choices:
            wrong.append(f"{name}={value(name)!r}: expected one of {', '.join(choices)}")
    wrong += [f"{n}={value(n)!r}: expected more than 0" for n in _POSITIVE if not value(n) > 0]
    wrong += [f"{n}={value(n)!r}: expected 0 or more" for n in _NOT_NEGATIVE if not value(n) >= 0]
    wrong += [
        f"{n}={value(n)!r}: expected between 0 and 1" for n in _FRACTIONS if not 0 <= value(n) <= 1
    ]
    wrong += [
        f"{n}={value(n)!r}: expected more than 0, at most 1"
        for n in _FACTORS
        if not 0 < value(n) <= 1
    ]
    wrong += [
        f"{n}={value(n)!r}: expected one or more different numbers above 0"
        for n in _POSITIVE_LISTS
        if not (value(n) and all(x > 0 for x in value(n)) and len({*value(n)}) == len(value(n)))
    ]
    if not config.lora.targets or not {*config.lora.targets} <= {*_LORA_TARGETS}:
        wrong.append(
            f"lora.targets={config.lora.targets!r}: expected some of {', '.join(_LORA_TARGETS)}"
        )
    if config.data.fraction < 1 and config.data.shots:
        wrong.append("data.fraction and data.shots are both set: expected at most one")
    if config.backbone.run and config.backbone.weights:
        wrong.append(
            f"backbone.run={config.backbone.run!r} and"
            f" backbone.weights={config.backbone.weights!r} are both set: expected one of them"
            " (--config.backbone.weights= empties it)"
        )
    if config.augment.hue > 0.5:  # half the colour circle in both directions covers all of it
        wrong.append(f"augment.hue={config.augment.hue!r}: expected at most 0.5")
    if not 0 <= config.augment.affine_shear < 90:
        wrong.append(
            f"augment.affine_shear={config.augment.affine_shear!r}: expected degrees from 0 to"
            " below 90"
        )
    if not all(0 <= move <= 1 for move in config.augment.affine_translate):
        wrong.append(
            f"augment.affine_translate={config.augment.affine_translate!r}: expected two numbers"
            " between 0 and 1"
        )
    for name in _RANGES:
        low, high = value(name)
        if not 0 < low <= high:
            wrong.append(f"{name}={value(name)!r}: expected 0 < low <= high")
    if config.augment.erase_area[1] > 1:
        wrong.append(f"augment.erase_area={config.augment.erase_area!r}: expected at most 1")
    if config.optim.warmup_steps and config.optim.warmup_epochs:
        wrong.append(
            "optim.warmup_steps and optim.warmup_epochs are both set: expected at most one"
        )
    if config.train.batch_size % config.optim.accumulate:
        wrong.append(
            f"train.batch_size={config.train.batch_size} is not a multiple of"
            f" optim.accumulate={config.optim.accumulate}"
        )
    if wrong:
        raise UsageError("config: " + "; ".join(wrong) + ".")
