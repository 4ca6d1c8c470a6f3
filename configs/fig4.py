"""Figure 4: progressive freezing, the first blocks frozen and a linear head.

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/fig4.py:aptos2019,dinov2,8 --workdir=runs/fig4

The last part of the argument is the number of frozen blocks: 0 to 11 of a ViT-B, 0 to 3 of SEEM and
ResNet, whose blocks are stages. MODEL as in configs/fig2.py.

Published, without numbers: little is lost up to 8 frozen blocks of 12, and much beyond; SEEM loses
least, ISIC2019 most. We have not reproduced it: the data sets and the checkpoints are not ours to
ship.

For all blocks frozen see Table 1. With no block frozen, stem and position embedding still are, as
in the study; to train them too, use Table 2. Under a DeiT-B instead of a linear head:
--config.protocol=stacked_partial --config.transformer.weights=in1k
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig4, recipe


def get_config(arg: str = "aptos2019,dinov2,6") -> ExperimentConfig:
    """Make the experiment's config; `arg` is SET,MODEL,FROZEN."""
    dataset, model, frozen = recipe.arguments(
        arg, set=recipe.DATASETS, model=recipe.MODELS, frozen=recipe.BLOCKS
    )
    return fig4.config(dataset, model, int(frozen))
