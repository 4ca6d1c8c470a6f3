"""Data sets, models and training recipe that the experiments of the study share.

Source: "Are Natural Domain Foundation Models Useful for Medical Image Classification?" (WACV
2024). The files of `fmi_jax.study.grids` define its tables and figures with `judged` and
`trained`. Where the study's code is wrong or unclear, the project's own choice is kept, above all
`backbone.stem="sum"` on grey images; `docs/protocols.md` lists these choices with the values that
follow the study.
"""

import dataclasses
from collections.abc import Collection, Mapping

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError, unknown_name
from fmi_jax.study.spec import RATES


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyDataset:
    """Split and warm-up that the study used on a data set. The selecting metric is the data set's.

    Attributes:
      split: name of the study's split; "official": the published lists.
      warmup_epochs, warmup_steps: length of the warm-up; see `OptimConfig`.
    """

    split: str
    warmup_epochs: float = 0.0
    warmup_steps: int = 0


DATASETS: Mapping[str, StudyDataset] = {
    "aptos2019": StudyDataset(split="upstream", warmup_epochs=5),
    "ddsm": StudyDataset(split="official", warmup_epochs=5),
    "isic2019": StudyDataset(split="upstream", warmup_steps=1000),
    "chexpert": StudyDataset(split="upstream", warmup_steps=1000),
}
"""Data sets of the study, in the order of the tables' columns."""

MODELS: Mapping[str, tuple[str, str]] = {
    "sam": ("sam_vit_b", "sa1b"),
    "seem": ("seem_focal_tiny", "seem_v0"),
    "openclip": ("clip_vitb16", "laion2b_s34b_b88k"),
    "dinov2": ("dinov2_vitb14", "lvd142m"),
    "blip": ("blip_base", "129m"),
    "imnet-1k-sup": ("deit_base", "in1k"),
    "dinov1": ("dino_vitb16", "dino_in1k"),
    "resnet152": ("resnet152", "in1k"),
}
"""Backbone and weights of each model, by the paper's name in lower case."""

FOUNDATIONS = ("sam", "seem", "openclip", "dinov2", "blip")
"""Names of the foundation models in `MODELS`."""

PUBLISHED_HEADS: Mapping[str, str] = {"linear": "linear", "deit_base": "stacked_deit_base"}
"""Heads of Tables 1 and 2, with their names in `published.json`."""


def under(head: str) -> tuple[str, ...]:
    """Models of Tables 1 and 2 under a head; under a DeiT-B, only the foundation models."""
    return tuple(MODELS) if head == "linear" else FOUNDATIONS


def num_blocks(model: str) -> int:
    """Number of blocks of a model: 12 for a ViT-B, 4 for a network of stages."""
    return 4 if model in ("seem", "resnet152") else 12


BLOCKS = tuple(map(str, range(12)))
"""Indices of the blocks of a ViT-B; a network of stages has the first four."""


def arguments(arg: str, **choices: Collection[str]) -> list[str]:
    """Split a config's argument at its commas and check each part.

    Args:
      arg: text after the colon of `--config=configs/table1.py:aptos2019,dinov2,linear`.
      choices: valid values of each part, by its name; empty: any value.

    Raises:
      UsageError: there are too many or too few parts, or one is not among its choices.
    """
    parts = arg.split(",")
    if len(parts) != len(choices) or not all(parts):
        raise UsageError(f"config argument {arg!r}: expected {','.join(choices).upper()}.")
    for part, (name, valid) in zip(parts, choices.items(), strict=True):
        if valid and part not in valid:
            raise unknown_name(f"{name} in the config argument {arg!r}:", part, valid)
    return parts


def judged(protocol: str, dataset: str, model: str | None = None) -> ExperimentConfig:
    """Make the config of a protocol that trains no network, at 224 pixels.

    Args:
      protocol: name of the protocol.
      dataset: name of a data set in `DATASETS`.
      model: name of a model in `MODELS`; None: the protocol finds its networks elsewhere.
    """
    config = ExperimentConfig(protocol=protocol, image_size=224)
    config.data.name = dataset
    config.data.split = DATASETS[dataset].split
    if model is not None:
        config.backbone.name, config.backbone.weights = MODELS[model]
    return config


def trained(protocol: str, dataset: str, model: str) -> ExperimentConfig:
    """Make the config of a protocol that trains, by the paper's recipe, at 224 pixels.

    The recipe is AdamW after a linear warm-up, a tenth of the learning rate whenever validation
    stops improving, batches of 64, and the step that is best on validation. The paper searched four
    learning rates between 1e-5 and 1e-3 and prints neither them nor the chosen one. Here it is the
    1e-4 of the published code, except for `probe_grid`, which tries four.
    """
    config = judged(protocol, dataset, model)
    if protocol == "probe_grid":
        config.probe_grid.learning_rates = RATES
    config.optim.warmup_epochs = DATASETS[dataset].warmup_epochs
    config.optim.warmup_steps = DATASETS[dataset].warmup_steps
    config.optim.schedule = "plateau"
    if protocol.startswith("stacked"):
        config.transformer.name, config.transformer.weights = MODELS["imnet-1k-sup"]
    if model == "seem" and protocol in ("finetune", "stacked_finetune"):
        config.backbone.drop_path = 0.3  # value of the published network when all of it learns
    return config
