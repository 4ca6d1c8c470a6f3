"""Self-supervised pre-training on drawn fundus photographs, and what judges make of it.

Pre-train without labels, then judge the backbone: by neighbours, and by a linear probe, fitted to
convergence for several penalties (logistic regression).

python run.py --config=configs/dino.py --workdir=runs/dino
python run.py --config=configs/dino.py:knn --workdir=runs/near --config.backbone.run=runs/dino
python run.py --config=configs/dino.py:probe --workdir=runs/probe --config.backbone.run=runs/dino

Without `backbone.run` the last two judge the weights that the pre-training began with.
`python -m benchmarks.pretraining` does all of it for three seeds; the result is in
docs/protocols.md. The images are drawn by a program: the numbers say nothing about patients.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import unknown_name

JUDGES = {"": "dino", "knn": "knn", "probe": "logistic"}


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the config of the pre-training, or of a judge: "knn" or "probe"."""
    if arg not in JUDGES:
        raise unknown_name("argument of the config", arg, [name for name in JUDGES if name])
    config = ExperimentConfig(protocol=JUDGES[arg], image_size=64)
    config.data.name = "synthetic"
    config.data.prepared_size = 96
    config.data.split = "upstream"
    config.augment.center_crop = 1.0
    config.augment.hue = 0.02
    config.backbone.name = "deit_nano"
    config.train.batch_size = 64
    if arg == "knn":
        config.knn.k = (20,)
        return config
    if arg == "probe":
        return config
    config.optim.schedule = "cosine"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 0.04
    config.optim.warmup_steps = 20
    config.train.max_steps = 200
    config.train.eval_every_epochs = 20
    config.dino.prototypes = 256
    config.dino.hidden_width = 256
    config.dino.bottleneck_width = 32
    config.dino.momentum = 0.99
    config.dino.centre_momentum = 0.5
    config.dino.teacher_temperature = (0.02, 0.02)
    config.dino.local_crops = 2
    config.dino.local_size = 32
    return config
