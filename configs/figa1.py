"""Figure A.1: layers changed by training a stacked classifier, those of its DeiT-B included.

python run.py --config=configs/table1.py:aptos2019,dinov2,deit_base --workdir=runs/table1_deit
python run.py --config=configs/figa1.py:aptos2019,runs/table1_deit --workdir=runs/figa1_frozen
python run.py --config=configs/table2.py:aptos2019,dinov2,deit_base --workdir=runs/table2_deit
python run.py --config=configs/figa1.py:aptos2019,runs/table2_deit --workdir=runs/figa1_unfrozen

RUN is the folder of a finished run on SET, of Table 1 (frozen) or Table 2 (unfrozen) under a
DeiT-B. Published without numbers. Estimator and features as in configs/fig7.py.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig7, recipe


def get_config(arg: str = "aptos2019,runs/table1_deit") -> ExperimentConfig:
    """Make the config of the analysis; `arg` is SET,RUN."""
    return fig7.config(*recipe.arguments(arg, set=recipe.DATASETS, run=()))
