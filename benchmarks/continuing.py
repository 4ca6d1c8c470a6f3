"""Settings of a continued pre-training, tried on drawn images: a study of its own.

    fmi-jax draw isic2019 runs/more/raw --images 700
    fmi-jax prepare isic2019 --source runs/more/raw --size 96 --data-dir runs/more/data
    fmi-jax prepare synthetic --size 96 --split upstream --data-dir runs/more/data
    fmi-jax study run benchmarks/continuing.py --root runs/more --data-dir runs/more/data
    fmi-jax report --root runs/more

A small ViT is fine-tuned to grade drawn fundus photographs, and then goes on with DINO on drawn
photographs of skin, whose labels it does not see. A linear probe on these stands for what it knows,
before and after, under each setting. `configs/dino.py:small` has the best of them.
"""

import copy
import itertools
import runpy
from pathlib import Path

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.spec import Figure, Setting, Study

GET_CONFIG = runpy.run_path(str(Path(__file__).resolve().parent.parent / "configs" / "dino.py"))[
    "get_config"
]
SEEDS = 3
RATES, ANCHORS = (1e-4, 1e-3), (0.0, 0.5)
AT = {"dataset": "isic2019"}


def on_skin(config: ExperimentConfig) -> ExperimentConfig:
    """Put an experiment on the other images."""
    config = copy.deepcopy(config)
    config.data.name, config.data.split = "isic2019", ""
    return config


def first() -> Setting:
    """Describe the network that goes on: fine-tuned on the other kind of photographs."""
    config = GET_CONFIG("probe")
    config = ExperimentConfig(
        protocol="finetune",
        image_size=config.image_size,
        data=config.data,
        augment=config.augment,
        backbone=config.backbone,
    )
    config.optim.learning_rate, config.optim.schedule = 1e-3, "cosine"
    config.train.batch_size, config.train.max_steps = 64, 200
    config.train.eval_every_epochs = 10
    return Setting(at={"dataset": "synthetic"}, config=config, seeds=1)


def continued(rate: float, anchor: float, layer_decay: float) -> Setting:
    """Describe a pre-training that goes on from it."""
    config = on_skin(GET_CONFIG())
    config.optim.learning_rate, config.optim.layer_decay = rate, layer_decay
    config.dino.anchor = anchor
    return Setting(at=AT, config=config, after=first())


def settings() -> tuple[Setting, ...]:
    """List the probe before, and after each of six settings."""
    probe = on_skin(GET_CONFIG("probe"))
    tried = [(rate, anchor, 1.0) for rate, anchor in itertools.product(RATES, ANCHORS)]
    tried += [(rate, 0.0, 0.75) for rate in RATES]
    return (
        Setting(at={**AT, "setting": "before"}, config=probe, after=first(), seeds=SEEDS),
        *(
            Setting(
                at={**AT, "setting": f"rate {rate:g}, anchor {anchor:g}, layer decay {decay:g}"},
                config=probe,
                after=continued(rate, anchor, decay),
            )
            for rate, anchor, decay in tried
        ),
    )


STUDY = Study(
    name="continuing",
    title="Settings of a continued pre-training, on drawn images",
    settings=settings,
    rows=("setting",),
    figure=Figure(kind="dots", lines="setting"),
    rates=(),
    seeds=SEEDS,
    note="Drawn images: the numbers say nothing about patients.",
)
