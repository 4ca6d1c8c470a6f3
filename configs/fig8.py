"""Figure 8: similarity of the models, as the CKA of their last layers.

python run.py --config=configs/fig8.py:aptos2019 --workdir=runs/fig8

If weights are missing, the message names the command that fetches them. The comparison covers all
transformers of the study and SEEM, with their published weights. To compare runs of your own:
--config.cka.run=runs/a --config.cka.other="('runs/b','runs/c')"

Published, without numbers: BLIP is unlike all others, OpenCLIP included. Estimator and features as
in configs/fig7.py.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig8, recipe


def get_config(arg: str = "aptos2019") -> ExperimentConfig:
    """Make the config of the analysis; `arg` is SET."""
    return fig8.config(*recipe.arguments(arg, set=recipe.DATASETS))
