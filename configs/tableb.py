"""Tables B.1 and B.2: ResNet-152 from ImageNet and from in-domain DINO, beside DINOv2.

python -m weights_convert resnet152 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/tableb.py:aptos2019,imagenet,frozen --workdir=runs/tableb_frozen
python run.py --config=configs/tableb.py:aptos2019,imagenet,unfrozen --workdir=runs/tableb

SET, INIT and "frozen" or "unfrozen" are the keys of `PUBLISHED`. The in-domain weights are a
ResNet-152 that was pre-trained with DINO on the images of the data set itself. That pre-training
is not part of this program yet: INIT "dino" is refused, and the converted file of your own
(python -m weights_convert resnet152 --checkpoint FILE --out weights) takes its place:

configs/tableb.py:aptos2019,weights/resnet152.mine.safetensors,frozen

Not reproduced by us: the data sets and the checkpoints are not ours to ship.
"""

from fmi_jax import study
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError

# Metrics and order as in configs/table1.py.
PUBLISHED = {
    "frozen": {
        "imagenet": ("0.824 +- 0.003", "0.883 +- 0.001", "0.461 +- 0.027", "0.712 +- 0.000"),
        "dino": ("0.855 +- 0.004", "0.920 +- 0.001", "0.610 +- 0.020", "0.708 +- 0.000"),
        "dinov2": ("0.881 +- 0.002", "0.905 +- 0.001", "0.569 +- 0.012", "0.722 +- 0.000"),
    },
    "unfrozen": {
        "imagenet": ("0.899 +- 0.002", "0.960 +- 0.003", "0.817 +- 0.007", "0.807 +- 0.000"),
        "dino": ("0.898 +- 0.006", "0.954 +- 0.004", "0.818 +- 0.002", "0.810 +- 0.000"),
        "dinov2": ("0.909 +- 0.009", "0.966 +- 0.003", "0.859 +- 0.007", "0.812 +- 0.001"),
    },
}


def get_config(arg: str = "aptos2019,imagenet,frozen") -> ExperimentConfig:
    """The experiment; `arg` is SET,INIT,SETTING, where INIT may be a converted ResNet-152 file."""
    dataset, init, setting = study.arguments(arg, set=study.DATASETS, init=(), setting=PUBLISHED)
    if not init.endswith(".safetensors"):
        study.arguments(init, init=PUBLISHED[setting])
    if init == "dino":
        raise UsageError(
            f"config argument {arg!r}: pre-training with DINO on {dataset} itself is not part of"
            " this program; expected imagenet, dinov2, or the .safetensors file of such a"
            " ResNet-152 in the place of 'dino'."
        )
    protocol = "probe_grid" if setting == "frozen" else "finetune"
    config = study.trained(protocol, dataset, "dinov2" if init == "dinov2" else "resnet152")
    if init.endswith(".safetensors"):
        config.backbone.weights = init
    return config
