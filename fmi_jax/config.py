"""The experiment config: the settings that every experiment has, and the options of every protocol.

Configs are files with `get_config(arg)` that return an `ExperimentConfig`; any field is
overridden on the command line: `--config.optim.learning_rate=3e-4`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fmi_jax import fields
from fmi_jax.protocols.adapt.lora import LoraConfig
from fmi_jax.protocols.byol import ByolConfig
from fmi_jax.protocols.cka import CkaConfig
from fmi_jax.protocols.dino import DinoConfig
from fmi_jax.protocols.heads.attentive import AttentiveConfig
from fmi_jax.protocols.heads.decoder import DecoderConfig
from fmi_jax.protocols.heads.head_grid import ProbeGridConfig
from fmi_jax.protocols.heads.stacked import TransformerConfig
from fmi_jax.protocols.heads.unet import UNetConfig
from fmi_jax.protocols.heads.upernet import UPerNetConfig
from fmi_jax.protocols.knn import KnnConfig
from fmi_jax.protocols.logistic import LogisticConfig
from fmi_jax.protocols.mae import MaeConfig
from fmi_jax.protocols.registry import DEFAULT
from fmi_jax.protocols.saliency import SaliencyConfig
from fmi_jax.protocols.simsiam import SimSiamConfig
from fmi_jax.protocols.timing import TimingConfig
from fmi_jax.settings import BaseConfig


@dataclasses.dataclass(slots=True)
class ExperimentConfig(BaseConfig):
    """Config of one experiment.

    Each section here is read by one or two protocols only; under the others it must keep its
    defaults, so that no setting is silently ignored.
    """

    protocol: str = DEFAULT
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    probe_grid: ProbeGridConfig = dataclasses.field(default_factory=ProbeGridConfig)
    knn: KnnConfig = dataclasses.field(default_factory=KnnConfig)
    logistic: LogisticConfig = dataclasses.field(default_factory=LogisticConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    attentive: AttentiveConfig = dataclasses.field(default_factory=AttentiveConfig)
    cka: CkaConfig = dataclasses.field(default_factory=CkaConfig)
    timing: TimingConfig = dataclasses.field(default_factory=TimingConfig)
    saliency: SaliencyConfig = dataclasses.field(default_factory=SaliencyConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    upernet: UPerNetConfig = dataclasses.field(default_factory=UPerNetConfig)
    dino: DinoConfig = dataclasses.field(default_factory=DinoConfig)
    byol: ByolConfig = dataclasses.field(default_factory=ByolConfig)
    simsiam: SimSiamConfig = dataclasses.field(default_factory=SimSiamConfig)
    mae: MaeConfig = dataclasses.field(default_factory=MaeConfig)


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """Invert `fields.as_dict`.

    Raises:
      UsageError: a field is unknown, or a value has the wrong type.
    """
    return fields.from_dict(ExperimentConfig, values)
