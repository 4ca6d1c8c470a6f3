"""Figure 1: mean gain of each model over supervised ImageNet, over the data sets."""

from fmi_jax.study.grids import tables12
from fmi_jax.study.spec import Figure, Study

STUDY = Study(
    name="fig1",
    publication="huix2024",
    title="Figure 1: Table 2 relative to supervised ImageNet under a linear head",
    settings=tables12.TABLE2.settings,
    rows=("head", "model"),
    figure=Figure(kind="gain"),
    note="The published side is computed from the numbers of Table 2.",
)
