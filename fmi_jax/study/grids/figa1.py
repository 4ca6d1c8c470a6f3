"""Figure A.1: layers changed by training a stacked classifier, those of its DeiT-B included."""

from fmi_jax.study.grids import fig7, recipe, tables12
from fmi_jax.study.spec import Figure, Setting, Study

STUDY = Study(
    name="figa1",
    publication="huix2024",
    title="Figure A.1: CKA of every layer of a stacked classifier before and after training",
    settings=lambda: tuple(
        Setting(
            at={"dataset": dataset, "model": model, "backbone": backbone},
            config=fig7.config(dataset, ""),
            after=tables12.setting(dataset, model, "deit_base", backbone),
        )
        for backbone in tables12.PROTOCOLS
        for dataset in recipe.DATASETS
        for model in recipe.FOUNDATIONS
    ),
    rows=("backbone", "model"),
    figure=Figure(kind="layers"),
    note="Published as a plot without numbers.",
)
