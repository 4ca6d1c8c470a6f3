"""Figure 2: nearest neighbours of frozen features.

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/fig2.py:aptos2019,dinov2 --workdir=runs/fig2

MODEL is one of sam, seem, openclip, dinov2, blip, imnet-1k-sup, dinov1, resnet152.

Published: a figure without numbers, for k 200 and temperature 0.1; DINOv1 is the best in it,
supervised ImageNet and ResNet the worst. We have not reproduced it: the data sets and the
checkpoints are not ours to ship.

More pairs cost almost nothing, and the best by validation is reported:
--config.knn.k="(10,20,100,200)" --config.knn.temperature="(0.07,0.1)"
Features are stored in data/features: a second run on the same features takes seconds.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import fig2, recipe


def get_config(arg: str = "aptos2019,dinov2") -> ExperimentConfig:
    """Make the experiment's config; `arg` is SET,MODEL."""
    return fig2.config(*recipe.arguments(arg, set=recipe.DATASETS, model=recipe.MODELS))
