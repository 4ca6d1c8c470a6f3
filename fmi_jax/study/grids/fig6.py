"""Figure 6: DINOv2 of four sizes, fine-tuned with a linear head."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.spec import Figure, Setting, Study

SIZES = ("s", "b", "l", "g")

DATASETS = ("aptos2019", "ddsm", "isic2019")
"""Data sets of the paper's figure."""


def config(dataset: str, size: str) -> ExperimentConfig:
    """Make the config of one point."""
    config = recipe.trained("finetune", dataset, "dinov2")
    config.backbone.name = f"dinov2_vit{size}14"
    if size == "g":
        config.optim.accumulate = 4
        config.backbone.remat = True
    return config


STUDY = Study(
    name="fig6",
    publication="huix2024",
    title="Figure 6: DINOv2 of four sizes, fine-tuned",
    settings=lambda: tuple(
        Setting(at={"dataset": dataset, "size": size}, config=config(dataset, size))
        for size in SIZES
        for dataset in DATASETS
    ),
    rows=("size",),
    figure=Figure(kind="curves", x="size", x_label="Size of DINOv2", lines="dataset"),
    note=(
        "Published as a plot without numbers: larger is better on ISIC2019, not clearly so on the"
        " other two."
    ),
)
