"""Figure 3: speed of the models under a linear head and a DeiT-B, relative to supervised DeiT-B.

python run.py --config=configs/fig3.py --workdir=runs/fig3

Measures latency of one image, throughput, time to compile, operations and memory; weights are
random, which does not change the times. Published, without numbers: SEEM is the fastest at
inference, a stacked DeiT-B makes any of them much slower. For the other half of the figure,
iterations and time to the best validation score: fmi-jax study run fig3. They are in the
result.json of every training run ("best").
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig3


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the config of the timing; takes no argument."""
    del arg
    return fig3.config()
