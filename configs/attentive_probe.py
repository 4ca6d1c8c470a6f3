"""APTOS2019, DINOv2 ViT-B/14 frozen, a learned query that pools its tokens (not in the paper).

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/attentive_probe.py --workdir=runs/attentive

No number is published for it. It lies between a linear probe (0.881 +- 0.002,
configs/aptos2019.py with --config.protocol=linear_probe) and a frozen backbone under a DeiT-B
(0.901 +- 0.005): 1.2 million parameters learn, a seventieth of those of the latter. It reads all
tokens, not only the [cls] token, so it shows whether a linear probe misses something local.

The query has a head for every 64 channels; for another number of heads:
--config.attentive.num_heads=16
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    return recipe.trained("attentive_probe", "aptos2019", "dinov2")
