"""Every protocol on tiny backbones and two drawn data sets: minutes on two CPU cores.

The images are drawn by a program and the backbones start from random weights, so the numbers say
nothing about patients or models; they show what a study does and what its report looks like.
"""

from collections.abc import Iterator

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.spec import Figure, Setting, Study

DATASETS = ("synthetic", "isic2019")
"""Drawn fundus photographs, and drawn dermoscopic ones in the layout of ISIC 2019."""

BACKBONES = ("deit_nano", "sam_nano", "resnet_nano")

_RATES = {"finetune": 2e-3, "partial": 2e-3, "stacked_finetune": 1e-3, "stacked_partial": 1e-3}


def config(dataset: str, backbone: str, protocol: str) -> ExperimentConfig:
    """A short experiment of a protocol on images of 48 pixels."""
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
    if protocol == "probe_grid":
        config.probe_grid.learning_rates = (1e-3, 1e-2)
    elif protocol not in ("knn", "logistic", "cka", "timing"):
        config.optim.learning_rate = _RATES.get(protocol, 5e-3)
        config.optim.warmup_epochs = 1
        config.optim.schedule = "cosine"
    if protocol == "knn":
        config.knn.k = (5, 20)
    if protocol.startswith("stacked"):
        config.transformer.name = "deit_nano"
    if protocol.endswith("partial"):
        config.backbone.frozen_blocks = 1
    if protocol == "lora":
        config.lora.rank = 4
    return config


def settings() -> tuple[Setting, ...]:
    """Every protocol that a backbone can be judged by, on each data set."""
    return tuple(_settings())


def _settings() -> Iterator[Setting]:
    for protocol in (
        *("probe_grid", "linear_probe", "finetune", "stacked_probe", "stacked_finetune"),
        *("partial", "stacked_partial", "attentive_probe", "lora", "knn", "logistic"),
    ):
        for backbone in BACKBONES:
            if (protocol, backbone) == ("lora", "resnet_nano"):
                continue  # it has no linear layer to adapt
            for dataset in DATASETS:
                at = {"dataset": dataset, "protocol": protocol, "model": backbone}
                yield Setting(at=at, config=config(dataset, backbone, protocol))


STUDY = Study(
    name="example",
    title="Example: every protocol on tiny backbones and two drawn data sets",
    settings=settings,
    rows=("protocol", "model"),
    figure=Figure(kind="dots"),
    rates=(),
    seeds=2,
    note=(
        "Drawn images and random initial weights: the numbers say nothing about patients or models."
    ),
)
