"""Tables B.1 and B.2 with their ResNet-152 pre-trained here, in place of a file from elsewhere."""

import dataclasses

from fmi_jax.study.grids import initial_weights, tableb
from fmi_jax.study.spec import Setting, Study


def setting(found: Setting) -> Setting:
    """Make a setting of the tables one that can be run: in-domain weights are pre-trained first."""
    if found.config is not None:
        return found
    config = tableb.config(found.at["dataset"], "imagenet", found.at["backbone"])
    config.backbone.weights = ""
    before = initial_weights.pretraining(found.at["dataset"], "resnet152")
    return dataclasses.replace(found, config=config, after=before, why_not="")


STUDY = Study(
    name="in_domain",
    publication="huix2024",
    place="Tables B.1 and B.2, in-domain rows",
    title="Tables B.1 and B.2: ResNet-152 from ImageNet and from in-domain DINO, pre-trained here",
    settings=lambda: tuple(map(setting, tableb.STUDY.settings())),
    rows=tableb.STUDY.rows,
    note=(
        "The paper pre-trains by the recipe of the study of initial weights (arXiv 2108.09038),"
        " which is taken here, from ImageNet, once for each data set and on its training images"
        " alone."
    ),
)
