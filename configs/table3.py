"""Table 3: foundation models fine-tuned at 1024 pixels, under a linear head.

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW --size 1024
python run.py --config=configs/table3.py:aptos2019,dinov2 --workdir=runs/table3
python run.py --config=configs/table3.py:aptos2019,sam --workdir=runs/table3_sam

These commands run single cells; for the whole table: fmi-jax study run table3. The paper does not
say how 1024 pixels went into DINOv2, whose patches have 14: here it is the central 1022 x 1022 of
them. CheXpert comes in two sizes; the images of the "small" one have 390 pixels or fewer.

A batch of 64 is cut into eight, and blocks are recomputed instead of kept;
`python benchmarks/resolution.py` measures what that saves. If memory allows it, this is faster:
--config.optim.accumulate=1 --config.backbone.remat=False

Published, without deviations: quadratic weighted kappa on APTOS2019, AUROC on DDSM, macro recall on
ISIC2019, AUROC on CheXpert.

  sam       0.908  0.984  0.804  0.820
  seem      0.911  0.967  0.868  0.821
  openclip  0.904  0.980  0.852  0.813
  dinov2    0.917  0.983  0.895  0.825
  blip      0.909  0.984  0.839  0.813

We have not reproduced them: the data sets and the checkpoints are not ours to ship.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe, table3


def get_config(arg: str = "aptos2019,dinov2") -> ExperimentConfig:
    """Make the experiment's config; `arg` is SET,MODEL."""
    dataset, model = recipe.arguments(arg, set=recipe.DATASETS, model=recipe.FOUNDATIONS)
    return table3.config(dataset, model)
