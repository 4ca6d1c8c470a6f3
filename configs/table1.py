"""Table 1: frozen foundation models, under a linear head and under a DeiT-B.

python -m weights_convert dinov2_vitb14 --download --out weights
python -m weights_convert deit_base --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/table1.py:aptos2019,dinov2,linear --workdir=runs/table1_linear
python run.py --config=configs/table1.py:aptos2019,dinov2,deit_base --workdir=runs/table1_deit
python run.py --config=configs/table1.py:chexpert,seem,linear --workdir=runs/table1_chexpert

These commands run single cells; for the whole table: fmi-jax study run table1. SET is one of
aptos2019, ddsm, isic2019, chexpert; HEAD and MODEL as below. If the weights of another model are
missing, the message names the command that fetches them.

A linear head is trained with four learning rates in one pass over the images, and the best by
validation is reported. With features computed once and without augmentation it takes minutes
instead of hours: --config.probe_grid.cached=True. Under a DeiT-B the learning rate is 1e-4; for the
others of the search: --config.optim.learning_rate=1e-3. The five runs behind each number differ in
--config.train.seed=1.

Published, mean and deviation of five runs: quadratic weighted kappa on APTOS2019, AUROC on DDSM,
macro recall on ISIC2019, AUROC on CheXpert.

  linear    sam           0.873 +- 0.010  0.916 +- 0.004  0.402 +- 0.014  0.724 +- 0.001
  linear    seem          0.852 +- 0.003  0.891 +- 0.001  0.527 +- 0.007  0.731 +- 0.001
  linear    openclip      0.857 +- 0.003  0.897 +- 0.002  0.489 +- 0.010  0.702 +- 0.001
  linear    dinov2        0.881 +- 0.002  0.905 +- 0.001  0.569 +- 0.012  0.722 +- 0.000
  linear    blip          0.818 +- 0.014  0.845 +- 0.005  0.416 +- 0.021  0.647 +- 0.000
  linear    imnet-1k-sup  0.864 +- 0.007  0.908 +- 0.001  0.513 +- 0.015  0.719 +- 0.001
  linear    dinov1        0.878 +- 0.004  0.912 +- 0.002  0.588 +- 0.015  0.738 +- 0.001
  linear    resnet152     0.824 +- 0.003  0.883 +- 0.001  0.461 +- 0.027  0.712 +- 0.000
  deit_base sam           0.890 +- 0.005  0.940 +- 0.007  0.740 +- 0.015  0.788 +- 0.003
  deit_base seem          0.887 +- 0.002  0.925 +- 0.006  0.747 +- 0.028  0.777 +- 0.001
  deit_base openclip      0.903 +- 0.006  0.948 +- 0.004  0.748 +- 0.010  0.790 +- 0.001
  deit_base dinov2        0.901 +- 0.005  0.945 +- 0.008  0.790 +- 0.010  0.798 +- 0.001
  deit_base blip          0.895 +- 0.009  0.945 +- 0.004  0.763 +- 0.011  0.785 +- 0.000

We have not reproduced them: the data sets and the checkpoints are not ours to ship.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe, tables12


def get_config(arg: str = "aptos2019,dinov2,linear") -> ExperimentConfig:
    """Make the experiment's config; `arg` is SET,MODEL,HEAD."""
    dataset, model, head = recipe.arguments(
        arg, set=recipe.DATASETS, model=recipe.MODELS, head=recipe.PUBLISHED_HEADS
    )
    return tables12.config(dataset, model, head, "frozen")
