"""Figure 8: how alike the models are, by the CKA of their last layers.

python run.py --config=configs/fig8.py:aptos2019 --workdir=runs/fig8

Weights that are missing are named with the command that fetches them. Of the models of the study
all transformers and SEEM are compared, as they were published; runs of your own:
--config.cka.run=runs/a --config.cka.other="('runs/b','runs/c')"

Published, without numbers: BLIP is unlike all others, OpenCLIP included. Estimator and features as
in configs/fig7.py.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig8, recipe


def get_config(arg: str = "aptos2019") -> ExperimentConfig:
    """The analysis; `arg` is SET."""
    return fig8.config(*recipe.arguments(arg, set=recipe.DATASETS))
