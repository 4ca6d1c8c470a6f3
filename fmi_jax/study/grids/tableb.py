"""Tables B.1 and B.2: ResNet-152 from ImageNet and from in-domain DINO, beside DINOv2."""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe
from fmi_jax.study.published import published
from fmi_jax.study.spec import Setting, Study

PROTOCOLS = {"frozen": "probe_grid", "unfrozen": "finetune"}
"""Protocol for a frozen (Table B.1) and for an unfrozen backbone (Table B.2)."""

MODELS = {"imagenet": "resnet152", "dino": "resnet152", "dinov2": "dinov2"}
"""Model by source of the weights; "dino": a ResNet-152 pre-trained on the data set's images."""

_PUBLISHED = {"imagenet": "resnet152", "dino": "resnet152 in-domain dino", "dinov2": "dinov2"}


def config(dataset: str, init: str, backbone: str) -> ExperimentConfig:
    """Make the config of one cell; `init` may be a converted ResNet-152 file of one's own."""
    own = init.endswith(".safetensors")
    config = recipe.trained(PROTOCOLS[backbone], dataset, MODELS["imagenet" if own else init])
    if own:
        config.backbone.weights = init
    return config


STUDY = Study(
    name="tableb",
    publication="huix2024",
    title="Tables B.1 and B.2: ResNet-152 from ImageNet and from in-domain DINO, beside DINOv2",
    settings=lambda: tuple(
        Setting(
            at={"dataset": dataset, "init": init, "backbone": backbone},
            config=None if init == "dino" else config(dataset, init, backbone),
            published=published(
                "huix2024_tableB", dataset=dataset, model=_PUBLISHED[init], setting=backbone
            ),
            why_not=f"it pre-trains on {dataset} itself first, as the study 'in_domain' does",
        )
        for backbone in PROTOCOLS
        for init in MODELS
        for dataset in recipe.DATASETS
    ),
    rows=("backbone", "init"),
)
