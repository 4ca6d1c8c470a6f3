"""Every protocol on tiny backbones and two drawn data sets: minutes on two CPU cores.

The images are drawn by a program and the backbones start from random weights, so the numbers say
nothing about patients or models; they show what a study does and what its report looks like.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import set_fields, within
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.study.spec import Figure, Setting, Study

DATASETS = ("isic2019", "chexpert")
"""Drawn photographs of the skin, with eight classes, and drawn radiographs with several findings.
"""

BACKBONES = ("deit_nano", "resnet_nano")

_RATES = {"finetune": 2e-3, "partial": 2e-3, "stacked_finetune": 1e-3, "stacked_partial": 1e-3}


def config(dataset: str, backbone: str, protocol: str) -> ExperimentConfig:
    """Make the config of a short experiment on images of 48 pixels."""
    config = ExperimentConfig(protocol=protocol, image_size=48)
    config.data.name = dataset
    config.data.split = "upstream"
    config.data.prepared_size = 48
    config.augment.center_crop = 1.0
    config.augment.hue = 0.02
    config.backbone.name = backbone
    config.train.epochs = 8
    config.train.eval_every_epochs = 2
    config.train.batch_size = 32
    config.train.bootstrap_samples = 500
    spec = PROTOCOLS[protocol]
    if not within("optim.learning_rate", spec.unread):
        config.optim.learning_rate = _RATES.get(protocol, 5e-3)
        config.optim.warmup_epochs = 1
        config.optim.schedule = "cosine"
    set_fields(config, spec.small)
    return config


def _setting(dataset: str, backbone: str, protocol: str) -> Setting:
    return Setting(
        at={"dataset": dataset, "protocol": protocol, "model": backbone},
        config=config(dataset, backbone, protocol),
        after=_setting(dataset, backbone, "finetune") if protocol == "cka" else None,
    )


def _timing() -> Setting:
    """Time all backbones, under a linear head and under a transformer."""
    timed = config(DATASETS[0], BACKBONES[0], "timing")
    timed.timing.backbones = BACKBONES[1:]
    return Setting(at={"dataset": DATASETS[0], "measured": "inference"}, config=timed)


_NOTE = "Drawn images and random initial weights: the numbers say nothing about patients or models."

STUDY = Study(
    name="example",
    title="Example: every protocol on tiny backbones and two drawn data sets",
    settings=lambda: tuple(
        _setting(dataset, backbone, protocol)
        for protocol in (
            *("probe_grid", "linear_probe", "finetune", "stacked_probe", "stacked_finetune"),
            *("partial", "stacked_partial", "attentive_probe", "lora", "knn", "logistic", "cka"),
        )
        for backbone in BACKBONES
        if (protocol, backbone) != ("lora", "resnet_nano")  # it has no linear layer to adapt
        for dataset in DATASETS
    ),
    rows=("protocol", "model"),
    figure=Figure(kind="dots"),
    rates=(),
    seeds=2,
    note=_NOTE,
)

SPEED = Study(
    name="example_speed",
    title="Example: how fast the tiny backbones are",
    settings=lambda: (_timing(),),
    rows=("measured",),
    figure=Figure(kind="time"),
    rates=(),
    seeds=1,
    note=_NOTE,
)
