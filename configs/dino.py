"""Self-supervised pre-training, and what judges make of it.

On drawn fundus photographs: pre-train without labels, then judge the backbone: by neighbours, and
by a linear probe, fitted to convergence for several penalties (logistic regression).

python run.py --config=configs/dino.py --workdir=runs/dino
python run.py --config=configs/dino.py:knn --workdir=runs/near --config.backbone.run=runs/dino
python run.py --config=configs/dino.py:probe --workdir=runs/probe --config.backbone.run=runs/dino

Without `backbone.run` the last two judge the weights that the pre-training began with. BYOL,
SimSiam and MAE on the same images:

python run.py --config=configs/dino.py:byol --workdir=runs/byol
python run.py --config=configs/dino.py:simsiam --workdir=runs/simsiam
python run.py --config=configs/dino.py:mae --workdir=runs/mae

Two recipes for real images (set `data.name`): that of the paper, and that of the second study's
code without its defects (docs/pretraining.md):

python run.py --config=configs/dino.py:official --workdir=runs/official
python run.py --config=configs/dino.py:study --workdir=runs/study

A third continues DINOv2 on a few thousand images or fewer, on one GPU (docs/pretraining.md says how
it was chosen; converted weights are needed, python -m weights_convert dinov2_vits14 --download):

python run.py --config=configs/dino.py:small --workdir=runs/small

`python -m benchmarks.pretraining` does the first three for three seeds; the result is in
docs/pretraining.md. The images are drawn by a program: the numbers say nothing about patients.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import unknown_name
from fmi_jax.protocols.dino import DinoConfig

PROTOCOLS = {
    **{"": "dino", "byol": "byol", "simsiam": "simsiam", "mae": "mae"},
    **{"knn": "knn", "probe": "logistic"},
    **{"official": "dino", "study": "dino", "small": "dino"},
}
"""Protocol by the argument of the config: pre-trainings on drawn images, judges, recipes."""


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the config of a small pre-training, of a judge, or of a recipe."""
    if arg not in PROTOCOLS:
        raise unknown_name("argument of the config", arg, [name for name in PROTOCOLS if name])
    config = ExperimentConfig(protocol=PROTOCOLS[arg], image_size=64)
    config.data.name = "synthetic"
    config.data.prepared_size = 96
    config.data.split = "upstream"
    if arg in ("official", "study"):
        _recipe(config, official=arg == "official")
        return config
    if arg == "small":
        _continued(config)
        return config
    config.backbone.name = "deit_nano"
    config.train.batch_size = 64
    if arg in ("knn", "probe"):
        config.augment.center_crop = 1.0
        config.knn.k = (20,) if arg == "knn" else config.knn.k
        return config
    config.optim.schedule = "cosine"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.04
    config.optim.warmup_steps = 20
    config.train.max_steps = 200
    config.train.eval_every_epochs = 20
    if arg == "byol":
        config.byol.hidden_width = 256
        config.byol.projection_width = 64
    elif arg == "simsiam":
        config.simsiam.projection_width = 256
        config.simsiam.prediction_width = 64
    elif arg == "mae":
        config.mae.decoder_depth = 2
        config.mae.decoder_width = 64
        config.mae.decoder_heads = 2
    else:
        _small_dino(config.dino)
    return config


def _small_dino(options: DinoConfig) -> None:
    """Set what keeps a small network from both collapses in 200 steps."""
    options.prototypes = 256
    options.hidden_width = 256
    options.bottleneck_width = 32
    options.momentum = 0.99
    options.centre_momentum = 0.5
    options.teacher_temperature = (0.02, 0.02)
    options.local_crops = 2
    options.local_size = 32


def _recipe(config: ExperimentConfig, *, official: bool) -> None:
    """Set what both recipes share and in what they differ: a DeiT-S at 224 pixels."""
    config.image_size = 224
    config.data.prepared_size = 256
    config.backbone.name = "deit_small"
    config.backbone.drop_path = 0.1
    config.optim.schedule = "cosine"
    config.optim.weight_decay_end = 0.4
    config.dino.held_epochs = 1.0
    config.dino.temperature_epochs = 30
    if official:
        config.train.batch_size, config.train.epochs = 256, 100
        config.optim.learning_rate = 5e-4 * config.train.batch_size / 256
        config.optim.cosine_end = 1e-6 / config.optim.learning_rate
        config.optim.weight_decay = 0.04
        config.optim.warmup_epochs = 10
        config.optim.clip_norm, config.optim.clip_by = 3.0, "tensor"
        config.dino.prototypes, config.dino.momentum = 65536, 0.996
        config.dino.local_crops = 8
        return
    config.backbone.weights = "in1k"
    config.train.batch_size, config.train.epochs = 64, 25
    config.optim.learning_rate = 1e-4
    config.optim.cosine_end = 1e-6 / config.optim.learning_rate
    config.optim.weight_decay, config.optim.decay = 1e-5, "l2"
    config.optim.warmup_steps = 500
    config.dino.momentum = 0.99


def _continued(config: ExperimentConfig) -> None:
    """Set what continues DINOv2 ViT-S on a few hundred or thousand images, close to what it was."""
    config.image_size = 224
    config.data.prepared_size = 256
    config.backbone.name, config.backbone.weights = "dinov2_vits14", "lvd142m"
    config.train.batch_size, config.train.epochs = 32, 20
    config.optim.schedule = "cosine"
    config.optim.learning_rate = 5e-5
    config.optim.layer_decay = 0.75
    config.optim.weight_decay = 0.04
    config.optim.warmup_epochs = 1
    config.optim.clip_norm, config.optim.clip_by = 3.0, "tensor"
    config.dino.prototypes = 1024
    config.dino.hidden_width, config.dino.bottleneck_width = 512, 128
    config.dino.momentum = 0.99
    config.dino.teacher_temperature = (0.04, 0.04)
    config.dino.held_epochs = 0.5
    config.dino.local_crops, config.dino.local_size = 4, 98
