"""Figure 4: progressive freezing, the first blocks frozen and a linear head."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.spec import Figure, Setting, Study


def config(dataset: str, model: str, frozen: int) -> ExperimentConfig:
    """Make the config of one point; the first `frozen` blocks do not learn."""
    config = recipe.trained("partial", dataset, model)
    config.backbone.frozen_blocks = frozen
    return config


STUDY = Study(
    name="fig4",
    publication="huix2024",
    title="Figure 4: the first blocks frozen",
    settings=lambda: tuple(
        Setting(
            at={"dataset": dataset, "model": model, "frozen": str(frozen)},
            config=config(dataset, model, frozen),
        )
        for dataset in recipe.DATASETS
        for model in recipe.MODELS
        for frozen in range(recipe.num_blocks(model))
    ),
    rows=("model", "frozen"),
    figure=Figure(kind="curves", x="frozen", x_label="Frozen blocks"),
    rates=(1e-4,),
    seeds=1,
    note=(
        "Published as a plot without numbers: little is lost up to 8 frozen blocks of 12, and much"
        " beyond; SEEM loses least, ISIC2019 most. Here one learning rate and one seed, unless"
        " more are asked for."
    ),
)
