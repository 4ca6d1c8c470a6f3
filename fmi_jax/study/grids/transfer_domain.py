"""Weights of chest radiographs: from scratch or after ImageNet, beside ImageNet's own.

The weights of radiographs are made here: a run on ChestX-ray14 or CheXpert, supervised, from random
weights or from ImageNet's, whose network every other task starts from. It is the first run of that
row and task of the same table.
"""

from collections.abc import Mapping

from fmi_jax.study.grids import transfer
from fmi_jax.study.spec import Figure, Setting, Study

INITS: Mapping[str, tuple[str, str, str]] = {
    "scratch": ("", "", "Scratch"),
    "imagenet": ("in1k", "", "ImageNet"),
    "chestxray14": ("", "DXC14", "ChestX-ray14"),
    "chexpert": ("", "DXC5", "CheXpert"),
    "imagenet+chestxray14": ("in1k", "DXC14", "ImageNet->CXR14"),
    "imagenet+chexpert": ("in1k", "DXC5", "ImageNet->CheXpert"),
    "imagenet+mimic": ("", "", ""),
}
"""First weights, task that is trained next, and published name of each row."""

TASKS = ("DXC14", "DXC5", "TXC", "PXS", "LXS")
"""Tasks of the table."""

WHY_NOT_MIMIC = (
    "MIMIC-CXR has no reader here; the study's weights have the tag 'in1k_mimic' of resnet50, and a"
    " task starts from them with --config.backbone.weights=in1k_mimic"
)


def pretraining(weights: str, name: str) -> Setting:
    """Make the setting whose first run is the continual pre-training on a task of radiographs."""
    task = transfer.TASKS[name]
    return Setting(
        at={"dataset": task.dataset, "pretraining": "supervised", "weights": weights or "random"},
        config=transfer.config(task, "resnet50", weights),
        seeds=1,
    )


def setting(name: str, init: str) -> Setting | None:
    """Make the setting of a task and of initial weights; None where both are the same images."""
    task = transfer.TASKS[name]
    weights, before, row = INITS[init]
    if before == name:
        return None
    mimic = init == "imagenet+mimic"
    return Setting(
        at={"dataset": task.dataset, "init": init},
        config=None if mimic else transfer.config(task, "resnet50", "" if before else weights),
        published=transfer.number(
            task, {"hosseinzadeh2021_domain_adaptation": {"init": row.lower()}}
        ),
        after=pretraining(weights, before) if before else None,
        why_not=WHY_NOT_MIMIC,
    )


STUDY = Study(
    name="transfer_domain",
    publication="hosseinzadeh2021",
    place="Table of domain adaptation",
    title="Transfer of weights of chest radiographs, from scratch and after ImageNet",
    settings=lambda: tuple(
        found for init in INITS for name in TASKS if (found := setting(name, init)) is not None
    ),
    rows=("init",),
    figure=Figure(kind="dots", lines="init"),
    rates=(),
    seeds=transfer.RUNS,
    note=(
        "Published are means and standard deviations of ten runs. Against ImageNet the sequel of"
        " 2025 prints p of 1e-5 for CheXpert and 1.1e-7 for MIMIC-CXR on ChestX-ray14; 0.017 for"
        " ChestX-ray14 and 5.3e-7 for MIMIC-CXR on CheXpert; 4.1e-9, 2.5e-6 and 2.1e-7 for"
        " ChestX-ray14, CheXpert and MIMIC-CXR on Shenzhen, 0.0075, 0.0065 and 0.004 on SIIM-ACR;"
        " on clavicles 0.24, 0.37 and 0.031, on hearts 0.41, 0.25 and 0.015, which the table lacks."
        " Images of SIIM-ACR are from ChestX-ray14."
    ),
    reference={"init": "imagenet"},
)
