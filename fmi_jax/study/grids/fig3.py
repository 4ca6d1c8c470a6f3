"""Figure 3: cost of training and inference, relative to supervised DeiT-B."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe, tables12
from fmi_jax.study.spec import Figure, Setting, Study


def config() -> ExperimentConfig:
    """Make the config that times every model, under a linear head and under a DeiT-B."""
    config = ExperimentConfig(protocol="timing", image_size=224)
    config.data.name = "synthetic"  # only its numbers of classes and channels are used
    config.data.split = "upstream"
    config.backbone.name = recipe.MODELS["dinov2"][0]
    config.timing.reference = recipe.MODELS["imnet-1k-sup"][0]
    config.timing.backbones = tuple(
        backbone
        for model, (backbone, _) in recipe.MODELS.items()
        if model not in ("dinov2", "imnet-1k-sup")
    )
    config.timing.transformer = "deit_base"
    return config


STUDY = Study(
    name="fig3",
    publication="huix2024",
    title="Figure 3: cost of training and inference, relative to supervised DeiT-B",
    settings=lambda: (  # the timing, and everything trained for Tables 1 and 2
        Setting(at={"dataset": "synthetic", "measured": "inference"}, config=config()),
        *tables12.settings("frozen"),
        *tables12.settings("fine-tuned"),
    ),
    rows=("backbone", "head", "model"),
    figure=Figure(kind="time"),
    note=(
        "Published as a plot without numbers: SEEM is the fastest at inference, a DeiT-B on top"
        " makes any model much slower, and a linear head on frozen features needs the most"
        " iterations."
    ),
)
