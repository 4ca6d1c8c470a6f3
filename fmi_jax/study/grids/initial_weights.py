"""Initial weights: random, ImageNet, and ImageNet with in-domain DINO; a ResNet-50 and a DeiT-S.

Source: Table 1 of "Is it Time to Replace CNNs with Transformers for Medical Images?" (arXiv
2108.09038), median and standard deviation of five runs, and the code published with it. The text
and the code differ in the recipe, so both are here:

* "paper", as the text has it: 1,000 steps of warm-up, then a tenth of the rate whenever validation
  stops improving; random weights drawn as Kaiming has it.
* "code", as it is shipped: 25 epochs, 500 steps of warm-up, a cosine to a hundredth of the rate,
  which is 1e-6 at 1e-4; random weights of the DeiT-S drawn from a truncated normal.

Both have Adam with L2 1e-5, batches of 64 and a rate of 1e-4. That of random weights is searched
here; the text says 3e-4. A ResNet-50 is drawn as torchvision draws it, which is Kaiming's. Not as
in the code: training crops the centre before the random crop, as the first study does, and
validation counts every image.

The in-domain weights are pre-trained once, on the training images alone, from those of ImageNet,
and every seed starts from them. Batch and epochs of that are what an author states (256 images, 300
epochs); the rest is the code's, without its second update in every step.
"""

from collections.abc import Mapping

from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import set_fields
from fmi_jax.study.grids import recipe
from fmi_jax.study.published import published
from fmi_jax.study.spec import Figure, Setting, Study

DATASETS = ("aptos2019", "isic2019", "ddsm")
"""Data sets of the table."""

MODELS: Mapping[str, str] = {"resnet50": "ResNet50", "deit_small": "DeiT-S"}
"""Backbones, with their names in the table."""

INITS: Mapping[str, str] = {
    "random": "random",
    "imagenet": "ImageNet sup",
    "imagenet+dino": "ImageNet + in-domain DINO",
}
"""Initial weights, with their names in the table."""

RECIPES = ("paper", "code")

RATES = (3e-5, 1e-4, 3e-4, 1e-3)
"""Learning rates that are searched for random weights."""

_LOWEST = 1e-6  # learning rate at the end of a cosine


def pretraining(dataset: str, backbone: str) -> Setting:
    """Make the setting that pre-trains a backbone from ImageNet on a data set, with DINO."""
    config = recipe.judged("dino", dataset)
    _optimize(config, steps=500)
    set_fields(
        config,
        {
            **{"backbone.name": backbone, "backbone.weights": "in1k"},
            **{"backbone.drop_path": 0.0 if backbone.startswith("resnet") else 0.1},
            **{"train.batch_size": 256, "train.epochs": 300},
            **{"optim.schedule": "cosine", "optim.cosine_end": _LOWEST / 1e-4},
            **{"optim.weight_decay_end": 0.4},
            **{"dino.momentum": 0.99, "dino.held_epochs": 1.0, "dino.temperature_epochs": 30},
        },
    )
    at = {"dataset": dataset, "model": backbone, "pretraining": "dino"}
    return Setting(at=at, config=config, seeds=1)


def config(dataset: str, backbone: str, init: str, how: str) -> ExperimentConfig:
    """Make the config of one cell of the table by one of `RECIPES`.

    With in-domain weights it lacks the run that it starts from (`backbone.run`).
    """
    config = recipe.judged("finetune", dataset)
    config.backbone.name = backbone
    config.backbone.weights = "in1k" if init == "imagenet" else ""
    if how == "paper":
        _optimize(config, steps=1000)
        config.optim.schedule = "plateau"
    else:
        _optimize(config, steps=500)
        config.optim.schedule, config.optim.cosine_end = "cosine", _LOWEST / 1e-4
        config.train.epochs = 25
    if init == "random" and backbone == "deit_small":
        config.backbone.initialisation = "kaiming" if how == "paper" else "trunc_normal"
    return config


def _optimize(config: ExperimentConfig, steps: int) -> None:
    """Set what all trainings share: Adam with L2 as `torch.optim.Adam` has it, and the rate."""
    config.optim.learning_rate = 1e-4
    config.optim.weight_decay, config.optim.decay = 1e-5, "l2"
    config.optim.warmup_steps = steps


def setting(dataset: str, backbone: str, init: str, how: str) -> Setting:
    """Make the setting of one cell of the table, with its published number."""
    return Setting(
        at={"dataset": dataset, "init": init, "model": backbone, "recipe": how},
        config=config(dataset, backbone, init, how),
        published=published(
            "matsoukas2021_table1",
            dataset=dataset,
            init=INITS[init].lower(),
            model=MODELS[backbone].lower(),
        ),
        after=pretraining(dataset, backbone) if init == "imagenet+dino" else None,
        rates=RATES if init == "random" else None,
    )


STUDY = Study(
    name="initialisation",
    publication="matsoukas2021",
    place="Table 1",
    title="Initial weights: random, ImageNet, and ImageNet with in-domain DINO",
    settings=lambda: tuple(
        setting(dataset, backbone, init, how)
        for init in INITS
        for backbone in MODELS
        for how in RECIPES
        for dataset in DATASETS
    ),
    rows=("init", "model", "recipe"),
    figure=Figure(kind="dots"),
    rates=(),
    note=(
        "Published are the median and standard deviation of five runs, which stand beside both"
        " recipes: the text and the code that was published with it differ. The in-domain weights"
        " come from one pre-training for each model and data set, on the training images alone, so"
        " the spread over seeds is that of fine-tuning."
    ),
)
