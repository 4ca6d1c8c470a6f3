"""Your own images: the handwritten digits of scikit-learn, a small ViT from scratch.

python examples/write_digits.py data/raw/digits
fmi-jax prepare csv --name digits --source data/raw/digits/digits.csv --channels 1 --size 32
python run.py --config=configs/digits.py --workdir=runs/digits
"""

from fmi_jax.config import ExperimentConfig


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    config = ExperimentConfig(protocol="finetune", image_size=32, metric="accuracy")
    config.data.name = "digits"
    config.data.prepared_size = 32
    # A mirrored digit is no digit, and grey ones have no colours to shift: mild crops only.
    config.augment.center_crop = 1.0
    config.augment.crop_scale = (0.7, 1.0)
    config.augment.flip_horizontal = 0.0
    config.augment.flip_vertical = 0.0
    config.augment.jitter_probability = 0.0
    config.backbone.name = "deit_nano"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = 0.05
    config.optim.warmup_epochs = 2
    config.optim.schedule = "cosine"
    config.train.epochs = 30
    config.train.batch_size = 16
    config.train.eval_every_epochs = 5
    return config
