"""Every protocol on every family of backbones: it runs, and on eight devices it is the same."""

import copy
import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import short_runs
from tiny_backbones import ONE_PER_FAMILY, TINY, count_params
from tolerances import LOGISTIC, LOSS_ON_DEVICES

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.fields import set_fields
from fmi_jax.models.base import BackboneSpec, Execution, create_abstract
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.run.assembly import assemble

FAMILIES = {family.__name__: name for family, name in ONE_PER_FAMILY.items()}
# Narrower than the protocols' own examples: a tiny network has few channels, the set few images.
SMALLER = {"lora": {"lora.rank": 2, "lora.targets": ("q", "v", "proj")}, "knn": {"knn.k": (3, 5)}}
CLASSIFYING = [name for name, spec in PROTOCOLS.items() if spec.own.shows == "score"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """Two steps, one validation."""
    config = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    config.train.max_steps = 2
    config.backbone.last_block = -1
    config.augment.center_crop = 1.0
    return config


def tiny_spec(name: str) -> BackboneSpec:
    tiny = TINY[name]
    return BackboneSpec(
        name="tiny",
        family=tiny.family,
        arch=tiny.arch,
        num_params=count_params(create_abstract(tiny.family, tiny.arch, Execution())),
        patch_size=1,
        image_size=tiny.side,
        sources=(),
    )


def of(squares: ExperimentConfig, protocol: str, side: int) -> ExperimentConfig:
    config = dataclasses.replace(copy.deepcopy(squares), protocol=protocol, image_size=side)
    config.backbone.name = "tiny"
    spec = PROTOCOLS[protocol]
    set_fields(config, {**spec.small, **SMALLER.get(protocol, {})})
    if "optim.learning_rate" in spec.unread:
        config.optim.learning_rate = ExperimentConfig().optim.learning_rate
    return config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", CLASSIFYING)
def test_it_runs_and_is_the_same_on_eight_devices(
    protocol: str, family: str, squares: ExperimentConfig, tmp_path: Path
) -> None:
    name = FAMILIES[family]
    with mock.patch.dict(BACKBONES._specs, {"tiny": tiny_spec(name)}):
        config = of(squares, protocol, TINY[name].side)
        if (protocol, family) == ("lora", "ConvNeXt"):
            config.lora.targets = ("mlp",)
        if (protocol, family) == ("lora", "ResNet"):
            with pytest.raises(UsageError, match="no linear layer"):
                assemble(config, 3, 2)
            return
        one = short_runs.run(config, tmp_path / "one")
        config = copy.deepcopy(config)
        config.data.data_dir = str(tmp_path / "data")  # features of its own
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "squares").symlink_to(Path(squares.data.data_dir) / "squares")
        eight = short_runs.run(config, tmp_path / "eight", devices=8)
    # Of nine images some are at a border: a metric that counts may jump, the loss may not.
    for a, b in ((one.val, eight.val), (one.test, eight.test)):
        atol = LOGISTIC if protocol == "logistic" else 0  # that of where L-BFGS stops
        np.testing.assert_allclose(
            b.values["loss"], a.values["loss"], rtol=LOSS_ON_DEVICES, atol=atol
        )
    if protocol not in ("knn", "logistic", "probe_grid"):
        np.testing.assert_allclose(
            short_runs.losses(tmp_path / "eight"),
            short_runs.losses(tmp_path / "one"),
            rtol=LOSS_ON_DEVICES,
        )
