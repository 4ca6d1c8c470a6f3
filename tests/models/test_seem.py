"""SEEM: the stem that the study's code rebuilds for images of one channel."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_backbones import TINY, fill

from fmi_jax.artifacts.weights import fit_backbone
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Execution, create_abstract, parameters
from fmi_jax.models.registry import BACKBONES
from fmi_jax.models.seem import SEEM, BareStemArch
from fmi_jax.run.assembly import assemble
from fmi_jax.run.origin import _check_fits

SPEC = dataclasses.replace(
    BACKBONES["seem_focal_tiny"], arch=TINY["seem"].arch, family=TINY["seem"].family
)
GREY = dataclasses.replace(SPEC.arch, in_channels=1)


def bare() -> BareStemArch:
    arch = GREY.with_study_stem()
    assert isinstance(arch, BareStemArch)
    return arch


def test_it_has_neither_padding_nor_norm():
    for arch, side in ((GREY, 56), (bare(), 55)):
        model = create_abstract(SEEM, arch, Execution())
        assert model.grid(224, 224) == (side, side)
        assert any(name.startswith("stem.norm.") for name in parameters(model)) == (side == 56)
    assert dataclasses.asdict(bare()) == dataclasses.asdict(GREY)  # weights files fit both


def test_weights_of_colour_images_are_read_with_the_first_slice_of_the_kernel():
    params = {k: np.asarray(v) for k, v in parameters(fill(create_abstract(
        SEEM, SPEC.arch, Execution()))).items()}  # fmt: skip
    fitted = fit_backbone("here", params, SPEC, SPEC.arch, bare(), stem="study")
    assert {*params} - {*fitted} == {"stem.norm.scale", "stem.norm.bias"}
    kernel = params["stem.proj.kernel"]
    np.testing.assert_array_equal(fitted["stem.proj.kernel"], kernel[:, :, :1])
    np.testing.assert_array_equal(fitted["stem.proj.bias"], params["stem.proj.bias"])


def config_of(backbone: str, stem: str = "study") -> ExperimentConfig:
    config = ExperimentConfig(protocol="linear_probe", image_size=48)
    config.backbone.name, config.backbone.stem = backbone, stem
    return config


def test_only_the_stem_that_the_study_rebuilds_can_be_asked_for():
    assert isinstance(assemble(config_of("seem_focal_tiny"), 1, 2).arch, BareStemArch)
    for backbone, channels in (("seem_focal_tiny", 3), ("deit_nano", 1)):
        with pytest.raises(UsageError, match=rf"rebuilds no stem of {backbone} for {channels} "):
            assemble(config_of(backbone), channels, 2)


def test_a_run_hands_its_backbone_on_to_one_with_the_same_stem():
    config = config_of("seem_focal_tiny")
    there = assemble(config, 1, 2)
    run = SimpleNamespace(workdir="there", assembly=there, config=config)
    info = SimpleNamespace(name="grey")
    _check_fits(run, there, config, info)  # type: ignore[arg-type]
    other = config_of("seem_focal_tiny", stem="first")
    with pytest.raises(UsageError, match=r"'study', .* 'first'; expected --config.backbone.stem=s"):
        _check_fits(run, assemble(other, 1, 2), other, info)  # type: ignore[arg-type]
