"""Figure 7: layers changed by fine-tuning, as the CKA of every layer before and after."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe, tables12
from fmi_jax.study.spec import Figure, Setting, Study


def config(dataset: str, run: str) -> ExperimentConfig:
    """Make the config that analyses the finished run in folder `run`."""
    config = recipe.judged("cka", dataset)
    config.cka.run = run
    return config


STUDY = Study(
    name="fig7",
    publication="huix2024",
    title="Figure 7: CKA of every layer before and after fine-tuning",
    settings=lambda: tuple(
        Setting(
            at={"dataset": dataset, "model": model},
            config=config(dataset, ""),
            after=tables12.setting(dataset, model, "linear", "fine-tuned"),
        )
        for dataset in recipe.DATASETS
        for model in recipe.MODELS
    ),
    rows=("model",),
    figure=Figure(kind="layers"),
    note=(
        "Published as a plot without numbers: fine-tuning changes the upper layers, on ISIC2019 the"
        " most."
    ),
)
