"""A U-Net on a ResNet, as the third study trains it, on drawn fundus photographs with lesions.

All of it learns, from random weights, by Adam at 1e-3 without decay. In the study the ResNet is a
ResNet-50 and images have 224 pixels; here both are small enough for a laptop's CPU.

python run.py --config=configs/unet.py --workdir=runs/unet

Expected Dice on the 36 test images: 0.960. The images are drawn by a program
(fmi_jax/data/raw/drawn/fundus_lesions.py): the scores say nothing about patients.
"""

from fmi_jax.config import ExperimentConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    config = ExperimentConfig(protocol="fit", adapt="full", head="unet", image_size=64)
    config.data.name = "fundus_lesions"
    config.data.prepared_size = 64
    config.data.split = "stratified"
    config.augment.center_crop = 1.0
    config.augment.hue = 0.02
    config.backbone.name = "resnet_nano"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.0
    config.optim.schedule = "cosine"
    config.train.epochs = 60
    config.train.batch_size = 32
    config.train.eval_every_epochs = 10
    return config
