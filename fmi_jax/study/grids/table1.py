"""Table 1: frozen foundation models, under a linear head and under a DeiT-B."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.published import published
from fmi_jax.study.spec import Setting, Study

PROTOCOLS = {"linear": "probe_grid", "deit_base": "stacked_probe"}
"""Protocol by head. `probe_grid` trains all learning rates of a linear head in one pass."""


def config(dataset: str, model: str, head: str) -> ExperimentConfig:
    """Make the config of one cell of the table."""
    return recipe.trained(PROTOCOLS[head], dataset, model)


def setting(dataset: str, model: str, head: str) -> Setting:
    """Make the setting of one cell of the table, with its published number."""
    return Setting(
        at={"dataset": dataset, "model": model, "head": head, "backbone": "frozen"},
        config=config(dataset, model, head),
        published=published(
            "huix2024_table1", dataset=dataset, model=model, head=recipe.PUBLISHED_HEADS[head]
        ),
    )


def settings() -> tuple[Setting, ...]:
    """Settings of all cells, in the order of the paper."""
    return tuple(
        setting(dataset, model, head)
        for head in PROTOCOLS
        for model in recipe.under(head)
        for dataset in recipe.DATASETS
    )


STUDY = Study(
    name="table1",
    title="Table 1: frozen foundation models, under a linear head and under a DeiT-B",
    settings=settings,
    rows=("head", "model"),
)
