"""APTOS2019, DINOv2 ViT-B/14, fine-tuned with a linear head (paper, Table 2).

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/aptos2019.py --workdir=runs/aptos2019

Published: quadratic weighted kappa 0.909 +- 0.009 over 5 runs; with
--config.protocol=linear_probe 0.881 +- 0.002 (Table 1). We have not reproduced it: the data set and
the checkpoint are not ours to ship. The paper searched four learning rates between 1e-5 and 1e-3
and does not print them.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    return recipe.trained("finetune", "aptos2019", "dinov2")
