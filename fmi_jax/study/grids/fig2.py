"""Figure 2: nearest neighbours of frozen features."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.spec import Figure, Setting, Study


def config(dataset: str, model: str) -> ExperimentConfig:
    """Make the config of one point."""
    config = recipe.judged("knn", dataset, model)
    config.knn.k = (200,)
    config.knn.temperature = (0.1,)
    return config


STUDY = Study(
    name="fig2",
    publication="huix2024",
    title="Figure 2: nearest neighbours of frozen features",
    settings=lambda: tuple(
        Setting(at={"dataset": dataset, "model": model}, config=config(dataset, model))
        for model in recipe.MODELS
        for dataset in recipe.DATASETS
    ),
    rows=("model",),
    figure=Figure(kind="dots"),
    note=(
        "Published as a plot without numbers: DINOv1 is the best in it, supervised ImageNet and"
        " ResNet-152 the worst."
    ),
)
