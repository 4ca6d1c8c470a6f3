"""Figure 5: a DeiT-B on the tokens of an earlier block, with later blocks cut off.

python -m weights_convert dinov2_vitb14 --download --out weights
python -m weights_convert deit_base --download --out weights
fmi-jax prepare ddsm --source RAW --split official
python run.py --config=configs/fig5.py:ddsm,dinov2,5,frozen --workdir=runs/fig5_frozen
python run.py --config=configs/fig5.py:ddsm,dinov2,5,unfrozen --workdir=runs/fig5_unfrozen

The number is the index of the last block to keep: 0 to 11 of a ViT-B, 0 to 3 of SEEM, whose blocks
are stages. The paper shows the foundation models on APTOS2019 and DDSM.

Published, without numbers: fine-tuned, more blocks are better; frozen, early and middle ones are
best, around block 5 on DDSM. We have not reproduced it: the data sets and the checkpoints are not
ours to ship.

For a linear head instead of the DeiT-B: configs/table2.py with --config.backbone.last_block=5.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig5, recipe


def get_config(arg: str = "ddsm,dinov2,5,frozen") -> ExperimentConfig:
    """Make the experiment's config; `arg` is SET,MODEL,BLOCK,SETTING."""
    dataset, model, block, backbone = recipe.arguments(
        arg,
        set=recipe.DATASETS,
        model=recipe.MODELS,
        block=recipe.BLOCKS,
        setting=fig5.PROTOCOLS,
    )
    return fig5.config(dataset, model, int(block), backbone)
