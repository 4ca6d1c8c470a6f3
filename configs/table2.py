"""Table 2: fine-tuned foundation models, under a linear head and under a DeiT-B.

python -m weights_convert dinov2_vitb14 --download --out weights
python -m weights_convert deit_base --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/table2.py:aptos2019,dinov2,linear --workdir=runs/table2_linear
python run.py --config=configs/table2.py:aptos2019,dinov2,deit_base --workdir=runs/table2_deit
python run.py --config=configs/table2.py:ddsm,seem,linear --workdir=runs/table2_ddsm

These commands run single cells; for the whole table: fmi-jax study run table2. SET is one of
aptos2019, ddsm, isic2019, chexpert; HEAD and MODEL as below. For the other learning rates of the
study's search: --config.optim.learning_rate=1e-5. The five runs behind each number differ in
--config.train.seed=1. Figure 1 is this table, relative to its row of supervised ImageNet.

Published, mean and deviation of five runs: quadratic weighted kappa on APTOS2019, AUROC on DDSM,
macro recall on ISIC2019, AUROC on CheXpert.

  linear    sam           0.894 +- 0.007  0.950 +- 0.006  0.798 +- 0.010  0.801 +- 0.001
  linear    seem          0.902 +- 0.003  0.958 +- 0.003  0.835 +- 0.009  0.808 +- 0.001
  linear    openclip      0.903 +- 0.013  0.945 +- 0.012  0.818 +- 0.008  0.806 +- 0.001
  linear    dinov2        0.909 +- 0.009  0.966 +- 0.003  0.859 +- 0.007  0.812 +- 0.001
  linear    blip          0.891 +- 0.006  0.961 +- 0.003  0.798 +- 0.016  0.797 +- 0.000
  linear    imnet-1k-sup  0.904 +- 0.006  0.960 +- 0.003  0.823 +- 0.008  0.797 +- 0.002
  linear    dinov1        0.886 +- 0.004  0.958 +- 0.004  0.775 +- 0.007  0.794 +- 0.001
  linear    resnet152     0.899 +- 0.002  0.960 +- 0.003  0.817 +- 0.007  0.807 +- 0.000
  deit_base sam           0.890 +- 0.005  0.951 +- 0.004  0.778 +- 0.013  0.796 +- 0.002
  deit_base seem          0.901 +- 0.007  0.946 +- 0.002  0.808 +- 0.022  0.802 +- 0.001
  deit_base openclip      0.907 +- 0.011  0.955 +- 0.010  0.809 +- 0.013  0.805 +- 0.001
  deit_base dinov2        0.904 +- 0.007  0.966 +- 0.004  0.822 +- 0.011  0.812 +- 0.001
  deit_base blip          0.897 +- 0.001  0.955 +- 0.002  0.806 +- 0.016  0.799 +- 0.000

We have not reproduced them: the data sets and the checkpoints are not ours to ship.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe, tables12


def get_config(arg: str = "aptos2019,dinov2,linear") -> ExperimentConfig:
    """Make the experiment's config; `arg` is SET,MODEL,HEAD."""
    dataset, model, head = recipe.arguments(
        arg, set=recipe.DATASETS, model=recipe.MODELS, head=recipe.PUBLISHED_HEADS
    )
    return tables12.config(dataset, model, head, "fine-tuned")
