"""Figure A.1: which layers of a stacked classifier training changes, the DeiT-B's among them."""

from fmi_jax.study.grids import fig7, recipe, table1, table2
from fmi_jax.study.spec import Figure, Setting, Study


def settings() -> tuple[Setting, ...]:
    """Every panel, each after the cell of Table 1 or 2 whose network it looks at."""
    return tuple(
        Setting(
            at={"dataset": dataset, "model": model, "backbone": backbone},
            config=fig7.config(dataset, ""),
            after=table.setting(dataset, model, "deit_base"),
        )
        for backbone, table in (("frozen", table1), ("fine-tuned", table2))
        for dataset in recipe.DATASETS
        for model in recipe.FOUNDATIONS
    )


STUDY = Study(
    name="figa1",
    title="Figure A.1: CKA of every layer of a stacked classifier before and after training",
    settings=settings,
    rows=("backbone", "model"),
    figure=Figure(kind="layers"),
    note="Published as a plot without numbers.",
)
