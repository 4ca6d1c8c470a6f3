"""APTOS2019, DINOv2 ViT-B/14, low-rank adapters in a frozen backbone (LoRA; not in the paper).

python -m weights_convert dinov2_vitb14 --download --out weights
fmi-jax prepare aptos2019 --source RAW
python run.py --config=configs/lora.py --workdir=runs/lora

No number is published for it; fine-tuned as a whole, the backbone reaches 0.909 +- 0.009 (paper,
Table 2). 295 thousand parameters of the backbone's 86 million learn, so a checkpoint takes 4 MB
instead of 1 GB. To export the result to PyTorch, with adapters merged into plain weights:

python -m weights_convert dinov2_vitb14 --checkpoint runs/lora --export timm --out exported

More capacity: --config.lora.rank=32 --config.lora.alpha=64
--config.lora.targets="('q', 'v', 'proj', 'mlp')".
"""

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.grids import recipe


def get_config(arg: str = "") -> ExperimentConfig:
    """Make the experiment's config; takes no argument."""
    del arg
    config = recipe.trained("lora", "aptos2019", "dinov2")
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.lora.targets = ("q", "v")
    config.optim.learning_rate = 1e-3  # ten times that of fine-tuning: adapters start at zero
    return config
