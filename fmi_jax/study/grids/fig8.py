"""Figure 8: similarity of the models, as the CKA of their last layers."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.spec import Figure, Setting, Study


def config(dataset: str) -> ExperimentConfig:
    """Make the config that compares all transformers and SEEM on a data set."""
    config = recipe.judged("cka", dataset, "dinov2")
    config.cka.other = tuple(
        f"{backbone}:{weights}"
        for model, (backbone, weights) in recipe.MODELS.items()
        if model not in ("dinov2", "resnet152")
    )
    return config


STUDY = Study(
    name="fig8",
    publication="huix2024",
    title="Figure 8: CKA of the last layers of the models",
    settings=lambda: tuple(
        Setting(at={"dataset": dataset}, config=config(dataset)) for dataset in recipe.DATASETS
    ),
    rows=(),
    figure=Figure(kind="models"),
    note="Published as a plot without numbers: BLIP is unlike all others, OpenCLIP included.",
)
