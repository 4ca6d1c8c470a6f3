"""Figure 6: DINOv2 of four sizes, fine-tuned with a linear head.

python -m weights_convert dinov2_vitl14 --download --out weights
fmi-jax prepare isic2019 --source RAW --split upstream
python run.py --config=configs/fig6.py:isic2019,l --workdir=runs/fig6

SIZE is s, b, l or g; the paper shows APTOS2019, DDSM and ISIC2019.

Published, without numbers: larger is better on ISIC2019, not clearly so on the other two. We have
not reproduced it: the data sets and the checkpoints are not ours to ship.

ViT-g has 1.1 billion parameters, 18 GB with gradients and optimizer. It is trained in
micro-batches, and its blocks are recomputed instead of kept. Several devices share its parameters
with --config.train.sharding=fsdp.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig6, recipe


def get_config(arg: str = "aptos2019,b") -> ExperimentConfig:
    """Make the experiment's config; `arg` is SET,SIZE."""
    return fig6.config(*recipe.arguments(arg, set=recipe.DATASETS, size=fig6.SIZES))
