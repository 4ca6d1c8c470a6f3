"""Tables B.1 and B.2: ResNet-152 from ImageNet and from in-domain DINO, beside DINOv2.

python -m weights_convert resnet152 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/tableb.py:aptos2019,imagenet,frozen --workdir=runs/tableb_frozen
python run.py --config=configs/tableb.py:aptos2019,imagenet,unfrozen --workdir=runs/tableb

These commands run single cells; for all of them: fmi-jax study run in_domain. The in-domain weights
are a ResNet-152 that was pre-trained with DINO on the images of the data set itself, which that
study does first. INIT "dino" is refused here. Start a single cell from such a run, or from a
converted file of your own (python -m weights_convert resnet152 --checkpoint FILE --out weights):

configs/tableb.py:aptos2019,imagenet,frozen
  --config.backbone.weights="" --config.backbone.run=FOLDER
configs/tableb.py:aptos2019,weights/resnet152.mine.safetensors,frozen

Published, mean and deviation of five runs: quadratic weighted kappa on APTOS2019, AUROC on DDSM,
macro recall on ISIC2019, AUROC on CheXpert.

  frozen   imagenet  0.824 +- 0.003  0.883 +- 0.001  0.461 +- 0.027  0.712 +- 0.000
  frozen   dino      0.855 +- 0.004  0.920 +- 0.001  0.610 +- 0.020  0.708 +- 0.000
  frozen   dinov2    0.881 +- 0.002  0.905 +- 0.001  0.569 +- 0.012  0.722 +- 0.000
  unfrozen imagenet  0.899 +- 0.002  0.960 +- 0.003  0.817 +- 0.007  0.807 +- 0.000
  unfrozen dino      0.898 +- 0.006  0.954 +- 0.004  0.818 +- 0.002  0.810 +- 0.000
  unfrozen dinov2    0.909 +- 0.009  0.966 +- 0.003  0.859 +- 0.007  0.812 +- 0.001

We have not reproduced them: the data sets and the checkpoints are not ours to ship.
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.study.grids import recipe, tableb


def get_config(arg: str = "aptos2019,imagenet,frozen") -> ExperimentConfig:
    """Make the config; `arg` is SET,INIT,SETTING, and INIT may be a converted ResNet-152 file."""
    dataset, init, backbone = recipe.arguments(
        arg, set=recipe.DATASETS, init=(), setting=tableb.PROTOCOLS
    )
    if not init.endswith(".safetensors"):
        recipe.arguments(init, init=tableb.MODELS)
    if init == "dino":
        raise UsageError(
            f"config argument {arg!r}: these weights are pre-trained on {dataset} itself first, as"
            " fmi-jax study run in_domain does; expected imagenet, dinov2, or the .safetensors file"
            " of such a ResNet-152 in the place of 'dino'."
        )
    return tableb.config(dataset, init, backbone)
