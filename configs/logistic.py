"""APTOS2019, DINOv2 ViT-B/14, logistic regression on frozen features.

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/logistic.py --workdir=runs/logistic

Not in the paper. Compare with its linear probe, quadratic weighted kappa 0.881 +- 0.002 (Table 1),
which sees augmented images. Logistic regression sees every image once, without augmentation, and
has no learning rate to search. With few labels: --config.data.shots=10, or
--config.data.fraction=0.1.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    config = recipe.judged("logistic", "aptos2019", "dinov2")
    config.logistic.c = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    return config
