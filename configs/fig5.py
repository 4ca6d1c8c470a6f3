"""Figure 5: a DeiT-B on the tokens of an earlier block, later ones cut off.

python -m weights_convert dinov2_vitb14 --download --out weights
python -m weights_convert deit_base --download --out weights
fmi-jax prepare ddsm --source RAW
python run.py --config=configs/fig5.py:ddsm,dinov2,5,frozen --workdir=runs/fig5_frozen
python run.py --config=configs/fig5.py:ddsm,dinov2,5,unfrozen --workdir=runs/fig5_unfrozen

The number is the index of the last block that is kept: 0 to 11 of a ViT-B, 0 to 3 of SEEM, whose
blocks are stages. Of the foundation models the paper shows APTOS2019 and DDSM.

Published, without numbers: fine-tuned, more blocks are better; frozen, early and middle ones are
best, around block 5 on DDSM. Not reproduced by us: the data sets and the checkpoints are not ours
to ship.

A linear head instead of the DeiT-B: configs/table2.py with --config.backbone.last_block=5.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig5, recipe


def get_config(arg: str = "ddsm,dinov2,5,frozen") -> ExperimentConfig:
    """The experiment; `arg` is SET,MODEL,BLOCK,SETTING."""
    dataset, model, block, backbone = recipe.arguments(
        arg,
        set=recipe.DATASETS,
        model=recipe.MODELS,
        block=recipe.BLOCKS,
        setting=fig5.PROTOCOLS,
    )
    return fig5.config(dataset, model, int(block), backbone)
