"""Tasks and recipe of the third study, which its three grids share.

Source: "A Systematic Benchmarking Analysis of Transfer Learning for Medical Image Analysis" (arXiv
2108.05930), the code published with it, and what an author has said of it: ten runs, and batches of
16 on DRIVE. All of a network learns, without weight decay, and the step with the lowest loss on
validation is kept.

* Findings: Adam at 2e-4, half the rate whenever validation has not improved for more than 5
  epochs, the end after 10, batches of 32; random resized crops, flips, rotations up to 7 degrees;
  uncertain ones drawn anew from 0.55 to 0.85; test images in ten crops.
* Masks: U-Net, Dice over the batch, Adam at 1e-3 on a cosine by epoch over 200 epochs, the end
  after 20 without improvement, batches of 32; tone, distortion and zoom, of validation images as
  well. On DRIVE cross entropy, 512 pixels, no augmentation.

Not as in the code: training on findings crops the centre before the random crop, the plateau counts
every improvement, images of masks are shrunk with antialiasing, and PE is left out.
"""

import dataclasses
from collections.abc import Mapping

from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import set_fields
from fmi_jax.study.published import Published, published

RUNS = 10
"""Number of runs behind a published number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """A task that backbones are transferred to.

    Attributes:
      dataset: name of the data set.
      split: name of the split.
      metric: metric that is reported; the trained loss on validation selects.
      published: name of the data set in `published.json`, where it is another.
      masks: True if it is a segmentation.
    """

    dataset: str
    split: str
    metric: str
    published: str = ""
    masks: bool = False


PE = "rsna_pe"
"""Data set of the task that cannot be run."""

WHY_NOT_PE = "the study released neither its loader nor its split of RSNA's CT slices"

TASKS: Mapping[str, Transfer] = {
    "DXC14": Transfer(dataset="chestxray14", split="upstream", metric="roc_auc"),
    "DXC5": Transfer(
        dataset="chexpert_rgb",
        split="official",
        metric="roc_auc_competition",
        published="chexpert",
    ),
    "ECC": Transfer(dataset=PE, split="", metric="roc_auc"),
    "TXC": Transfer(dataset="shenzhen", split="official", metric="roc_auc"),
    "PXS": Transfer(
        dataset="siim_pneumothorax",
        split="stratified",
        metric="dice",
        published="siim_acr",
        masks=True,
    ),
    "LXS": Transfer(dataset="montgomery", split="stratified", metric="dice", masks=True),
    "VFS": Transfer(dataset="drive", split="official", metric="dice", masks=True),
}
"""Tasks of 2021 by the study's names: findings (DXC14, DXC5), embolism (ECC), tuberculosis (TXC),
and masks of pneumothorax (PXS), lungs (LXS) and vessels (VFS)."""

TASKS_2025: Mapping[str, Transfer] = {
    **{name: TASKS[name] for name in ("DXC14", "DXC5", "TXC")},
    "breast": Transfer(dataset="busi", split="stratified", metric="dice", masks=True),
    **{
        part: Transfer(dataset=f"scr_{part}", split="official", metric="dice", masks=True)
        for part in ("clavicle", "heart")
    },
    **{name: TASKS[name] for name in ("LXS", "PXS")},
}
"""Tasks of the sequel of 2025."""


def config(task: Transfer, backbone: str, weights: str) -> ExperimentConfig | None:
    """Make the config of a backbone on a task by the recipe of 2021; None if it cannot be run.

    Args:
      task: task of the study.
      backbone: name of the backbone.
      weights: tag of its weights; empty: random ones.
    """
    if task.dataset == PE:
        return None
    config = ExperimentConfig(image_size=224, metric=task.metric)
    set_fields(
        config,
        {
            **{"backbone.name": backbone, "backbone.weights": weights},
            **{"data.name": task.dataset, "data.split": task.split},
            **{"optim.weight_decay": 0.0, "optim.clip_norm": 0.0, "train.batch_size": 32},
            **{"augment.flip_vertical": 0.0, "augment.jitter_probability": 0.0},
            **{"train.select_by": "loss"},
            **(_masks(task) if task.masks else _findings(task)),
        },
    )
    return config


def _findings(task: Transfer) -> dict[str, object]:
    return {
        **{"protocol": "finetune", "views.name": "ten_crop"},
        **({"loss.soft_labels": (0.55, 0.85)} if task is TASKS["DXC5"] else {}),
        **{"optim.learning_rate": 2e-4, "optim.schedule": "plateau"},
        **{"optim.plateau_factor": 0.5, "optim.plateau_patience": 5, "optim.plateau_floor": 0.0},
        **{"train.epochs": 1000.0, "train.patience": 10},
        **{"augment.crop_scale": (0.08, 1.0)},
        **{"augment.rotation_probability": 1.0, "augment.rotation_degrees": 7.0},
    }


def _masks(task: Transfer) -> dict[str, object]:
    common: dict[str, object] = {
        **{"protocol": "fit", "adapt": "full", "head": "unet"},
        **{"optim.learning_rate": 1e-3, "optim.schedule": "cosine_by_epoch"},
        **{"train.epochs": 200.0, "train.patience": 20, "data.prepared_size": 224},
        **{"augment.center_crop": 1.0, "augment.crop_scale": (1.0, 1.0)},
        **{"augment.crop_ratio": (1.0, 1.0), "augment.flip_horizontal": 0.0},
    }
    if task.dataset == "drive":
        return common | {
            **{"loss.terms": "cross_entropy", "train.batch_size": 16},
            **{"image_size": 512, "data.prepared_size": 512},
        }
    return common | {
        **{"loss.terms": "dice", "loss.dice_over": "batch"},
        **{"augment.tone_probability": 0.3, "augment.distort_probability": 0.3},
        **{"augment.zoom_probability": 0.25, "train.augment_validation": True},
    }


def number(task: Transfer, tables: Mapping[str, Mapping[str, str]]) -> Published | None:
    """Look up a published number in the first table that has it, as the metric that is reported.

    Args:
      task: task of the number.
      tables: values that the row must have, by table.
    """
    dataset = task.published or task.dataset
    for table, where in tables.items():
        if found := published(table, dataset=dataset, **where):
            return dataclasses.replace(found, metric=task.metric)
    return None
