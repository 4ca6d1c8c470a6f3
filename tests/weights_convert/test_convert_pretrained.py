"""A backbone that was pre-trained here, written for PyTorch: published code has its features."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import short_runs
import torch
from reference_packages import load_exported, torchvision
from tolerances import PARITY_FORWARD

from fmi_jax import parallel
from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import set_fields
from fmi_jax.models.registry import BACKBONES
from fmi_jax.run.network import finished
from weights_convert.cli import main

import timm  # isort: skip - after torchvision
from timm.models.vision_transformer import VisionTransformer


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config.optim.warmup_steps, config.train.max_steps = 0, 2
    config.backbone.last_block = -1
    return dataclasses.replace(config, metric="")


class Block(torchvision.models.resnet.Bottleneck):
    """The block of `resnet_nano`."""

    expansion = 2


def nano() -> torch.nn.Module:
    """`resnet_nano`, of torchvision's parts: its own class has a stem of 64 channels."""
    model = torchvision.models.ResNet(Block, [1, 1, 1, 1])
    model.conv1 = torch.nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
    model.bn1, model.fc = torch.nn.BatchNorm2d(16), torch.nn.Identity()
    model.inplanes = 16
    for i, width in enumerate((8, 16, 32, 64)):
        layer = model._make_layer(Block, width, 1, stride=1 if i == 0 else 2)
        setattr(model, f"layer{i + 1}", layer)
    return model


DINO = {
    **{"dino.prototypes": 37, "dino.hidden_width": 29, "dino.bottleneck_width": 11},
    **{"dino.local_crops": 0, "dino.momentum": 0.8},
}
SIMSIAM = {"simsiam.projection_width": 17, "simsiam.prediction_width": 7}
SMALL = {
    "deit_nano": lambda: VisionTransformer(
        img_size=96,
        patch_size=8,
        embed_dim=64,
        depth=3,
        num_heads=2,
        mlp_ratio=2,
        num_classes=0,
    ),
    "resnet_nano": nano,
}


def assert_published_code_agrees(
    config: ExperimentConfig, create: Callable[[], Any], folder: Path
) -> None:
    """Pre-train, export in both layouts, load strictly, compare the pooled features.

    At the published size: positions keep the published grid, and are resized as images come.
    """
    name = config.backbone.name
    side = BACKBONES[name].image_size
    short_runs.run(config, folder / "pretrained")
    network = finished(folder / "pretrained", parallel.make_mesh(devices=jax.devices()[:1]))
    images = np.random.default_rng(7).normal(size=(3, side, side, 3)).astype(np.float32)
    backbone = network.partition.merge(network.arrays).backbone
    ours = np.asarray(backbone.features(jax.numpy.asarray(images)).pooled)
    for publisher, suffix in (("timm", "safetensors"), ("original", "pth")):
        command = [name, "--checkpoint", str(folder / "pretrained"), "--export", publisher]
        assert main([*command, "--out", str(folder)]) == 0
        path = folder / f"{name}.pretrained.{publisher}.{suffix}"
        model = load_exported(create(), path).eval()
        with torch.no_grad():
            theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        assert np.abs(ours - theirs).max() <= PARITY_FORWARD * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("backbone", "protocol", "fields"),
    [
        ("deit_nano", "dino", DINO),
        ("resnet_nano", "dino", DINO),
        ("resnet_nano", "simsiam", SIMSIAM),
    ],
)
def test_published_code_takes_a_pretrained_backbone(
    backbone: str,
    protocol: str,
    fields: dict[str, Any],
    squares: ExperimentConfig,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(copy.deepcopy(squares), protocol=protocol)
    set_fields(config, {"backbone.name": backbone, **fields})
    if backbone == "resnet_nano":
        config = dataclasses.replace(config, image_size=32)
    assert_published_code_agrees(config, SMALL[backbone], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "timm_name"), [("deit_small", "deit_small_patch16_224"), ("resnet50", "resnet50")]
)
def test_timm_takes_a_pretrained_backbone_of_full_size(
    backbone: str, timm_name: str, squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(copy.deepcopy(squares), protocol="dino", image_size=32)
    set_fields(config, {"backbone.name": backbone, "train.batch_size": 8, **DINO})
    assert_published_code_agrees(
        config, lambda: timm.create_model(timm_name, num_classes=0), tmp_path
    )
