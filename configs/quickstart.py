"""The quickstart: a small ViT from random weights on drawn fundus photographs, on a laptop's CPU.

python run.py --config=configs/quickstart.py --workdir=runs/quickstart

Expected on the 90 test images: quadratic weighted kappa 0.913 to 0.979, over five seeds and three
makes of CPU. It takes about a minute on 2 CPU cores, drawing included.

The images are drawn by a program (fmi_jax/data/raw/drawn/fundus.py): the score shows that the
program works, and says nothing about patients.
"""

from fmi_jax.config import ExperimentConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    config = ExperimentConfig(protocol="finetune", image_size=96)
    config.data.name = "synthetic"
    config.data.prepared_size = 96
    config.data.split = "upstream"
    # The whole field of view, and colours nearly unchanged: the hue tells a bleeding from a vessel,
    # and 420 images are too few to learn to do without it.
    config.augment.center_crop = 1.0
    config.augment.jitter_probability = 0.5
    config.augment.hue = 0.02
    config.backbone.name = "deit_nano"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 0.05
    config.optim.warmup_epochs = 5
    config.optim.schedule = "cosine"
    config.train.epochs = 40
    config.train.batch_size = 32
    config.train.eval_every_epochs = 5
    return config
