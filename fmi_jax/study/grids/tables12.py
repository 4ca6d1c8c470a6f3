"""Tables 1 and 2: foundation models, frozen and fine-tuned, under a linear head and a DeiT-B."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.published import published
from fmi_jax.study.spec import Setting, Study

PROTOCOLS = {
    "frozen": {"linear": "probe_grid", "deit_base": "stacked_probe"},
    "fine-tuned": {"linear": "finetune", "deit_base": "stacked_finetune"},
}
"""Protocol by head, for a frozen (Table 1) and for a fine-tuned backbone (Table 2). `probe_grid`
trains all learning rates of a linear head in one pass."""


def config(dataset: str, model: str, head: str, backbone: str) -> ExperimentConfig:
    """Make the config of one cell of a table."""
    return recipe.trained(PROTOCOLS[backbone][head], dataset, model)


def setting(dataset: str, model: str, head: str, backbone: str) -> Setting:
    """Make the setting of one cell of a table, with its published number."""
    return Setting(
        at={"dataset": dataset, "model": model, "head": head, "backbone": backbone},
        config=config(dataset, model, head, backbone),
        published=published(
            "huix2024_table1" if backbone == "frozen" else "huix2024_table2",
            dataset=dataset,
            model=model,
            head=recipe.PUBLISHED_HEADS[head],
        ),
    )


def settings(backbone: str) -> tuple[Setting, ...]:
    """Settings of all cells of a table, in the order of the paper."""
    return tuple(
        setting(dataset, model, head, backbone)
        for head in PROTOCOLS[backbone]
        for model in recipe.under(head)
        for dataset in recipe.DATASETS
    )


TABLE1 = Study(
    name="table1",
    publication="huix2024",
    title="Table 1: frozen foundation models, under a linear head and under a DeiT-B",
    settings=lambda: settings("frozen"),
    rows=("head", "model"),
)

TABLE2 = Study(
    name="table2",
    publication="huix2024",
    title="Table 2: fine-tuned foundation models, under a linear head and under a DeiT-B",
    settings=lambda: settings("fine-tuned"),
    rows=("head", "model"),
)
