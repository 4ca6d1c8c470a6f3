"""Segmentation: where the lesions of drawn fundus photographs are, on a laptop's CPU.

A small ViT with random weights, frozen, under a decoder; or any other pair of adaptation and head.

python run.py --config=configs/lesions.py --workdir=runs/lesions
python run.py --config=configs/lesions.py --workdir=runs/lesions_full --config.adapt=full

Expected Dice on the 36 test images: 0.852 and 0.901. The images are drawn by a program
(fmi_jax/data/raw/drawn/fundus_lesions.py): the scores say nothing about patients.
"""

from fmi_jax.config import ExperimentConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    config = ExperimentConfig(protocol="fit", adapt="frozen", head="decoder", image_size=64)
    config.data.name = "fundus_lesions"
    config.data.prepared_size = 64
    config.data.split = "stratified"
    config.augment.center_crop = 1.0
    config.augment.hue = 0.02
    config.backbone.name = "deit_nano"
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = 0.01
    config.optim.warmup_steps = 20
    config.optim.schedule = "cosine"
    config.train.epochs = 60
    config.train.batch_size = 32
    config.train.eval_every_epochs = 10
    return config
