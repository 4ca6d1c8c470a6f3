"""APTOS2019, DINOv2 ViT-B/14, fine-tuned on ten images of each grade (not in the paper).

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/few_shot.py:10 --workdir=runs/ten_shot

No number is published for it; on all 2,564 training images it is 0.909 +- 0.009 (paper, Table 2).

Validation and test are whole. For another draw of the images: --config.data.subset_seed=1. The ten
images of a seed are among the twenty of the same seed. To use a share of the training images, equal
for every grade: --config.data.shots=0 --config.data.fraction=0.1. Both work with every protocol.

Earlier blocks learn more slowly (optim.layer_decay, the rule of BEiT), because few images would
damage what they hold.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.study.grids import recipe


def get_config(arg: str = "10") -> ExperimentConfig:
    """Make the experiment's config; `arg` is the number of training images of each class."""
    if not arg.isdecimal() or not int(arg):
        raise UsageError(f"configs/few_shot.py:{arg}: expected a number of images, such as 10.")
    config = recipe.judged("finetune", "aptos2019", "dinov2")
    config.data.shots = int(arg)
    config.optim.layer_decay = 0.75
    config.optim.warmup_steps = 50
    config.optim.schedule = "cosine"
    config.train.epochs = 640  # 10 shots: 500 steps of 64 images
    config.train.eval_every_epochs = 64
    return config
