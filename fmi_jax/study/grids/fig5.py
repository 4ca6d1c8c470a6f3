"""Figure 5: a DeiT-B on the tokens of an earlier block, with later blocks cut off."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.spec import Figure, Setting, Study

PROTOCOLS = {"frozen": "stacked_probe", "unfrozen": "stacked_finetune"}
"""Protocol for a frozen and for an unfrozen backbone."""

DATASETS = ("aptos2019", "ddsm")
"""Data sets of the paper's figure."""


def config(dataset: str, model: str, block: int, backbone: str) -> ExperimentConfig:
    """Make the config of one point; `block` is the last block to keep."""
    config = recipe.trained(PROTOCOLS[backbone], dataset, model)
    config.backbone.last_block = block
    return config


STUDY = Study(
    name="fig5",
    publication="huix2024",
    title="Figure 5: a DeiT-B on the tokens of an earlier block",
    settings=lambda: tuple(
        Setting(
            at={"dataset": dataset, "model": model, "block": str(block), "backbone": backbone},
            config=config(dataset, model, block, backbone),
        )
        for dataset in DATASETS
        for backbone in PROTOCOLS
        for model in recipe.FOUNDATIONS
        for block in range(recipe.num_blocks(model))
    ),
    rows=("backbone", "model", "block"),
    figure=Figure(kind="curves", x="block", x_label="Last block that is kept"),
    rates=(1e-4,),
    seeds=1,
    note=(
        "Published as a plot without numbers: fine-tuned, more blocks are better; frozen, early and"
        " middle ones are best, around block 5 on DDSM. Here one learning rate and one seed,"
        " unless more are asked for."
    ),
)
