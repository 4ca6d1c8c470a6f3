"""Figure 3: speed of the models with a linear head, relative to supervised DeiT-B.

python run.py --config=configs/fig3.py --workdir=runs/fig3

Latency of one image, throughput, time to compile, operations and memory; weights are random,
which changes no time. Published, without numbers: SEEM is the fastest at inference, a stacked
DeiT-B makes any of them much slower. The other half of the figure, iterations and time to the best
validation score, is in the result.json of every training run ("best").
"""

from fmi_jax import study
from fmi_jax.config import ExperimentConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """The timing; takes no argument."""
    del arg
    config = ExperimentConfig(protocol="timing", image_size=224)
    config.data.name = "synthetic"  # gives the number of classes and channels alone
    config.data.split = "upstream"
    config.backbone.name = study.MODELS["dinov2"][0]
    config.timing.reference = study.MODELS["imnet-1k-sup"][0]
    config.timing.backbones = tuple(
        backbone
        for model, (backbone, _) in study.MODELS.items()
        if model not in ("dinov2", "imnet-1k-sup")
    )
    return config
