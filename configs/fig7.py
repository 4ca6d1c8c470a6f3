"""Figure 7: layers changed by fine-tuning, as the CKA of every layer before and after.

python run.py --config=configs/table2.py:aptos2019,dinov2,linear --workdir=runs/table2_linear
python run.py --config=configs/fig7.py:aptos2019,runs/table2_linear --workdir=runs/fig7

RUN is the folder of a finished run on SET, here one of Table 2.

Published, without numbers: fine-tuning changes the upper layers, on ISIC2019 the most. The authors
average the CKA of batches of 64 (--config.cka.estimator=averaged); here HSIC is summed over the
batches and divided once, which depends less on the batch size. Features are all tokens of a layer
(--config.cka.features=all).
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig7, recipe


def get_config(arg: str = "aptos2019,runs/table2_linear") -> ExperimentConfig:
    """Make the config of the analysis; `arg` is SET,RUN."""
    return fig7.config(*recipe.arguments(arg, set=recipe.DATASETS, run=()))
