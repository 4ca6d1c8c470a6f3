"""A study of one's own: a linear probe before and after self-supervised pre-training.

make example-pretraining

Each of three seeds is pre-trained without labels (`configs/dino.py`). A linear probe of the outcome
stands beside one of the weights that the same seed began with, with an interval over test images
and seeds, and a paired test of the two. The images are drawn by a program: the numbers say nothing
about patients.
"""

import runpy
from pathlib import Path

from fmi_jax.config import ExperimentConfig
from fmi_jax.study.spec import Figure, Setting, Study

CONFIG = runpy.run_path(str(Path(__file__).resolve().parent.parent / "configs" / "dino.py"))

AT = {"dataset": "synthetic"}
SEEDS = 3


def probe() -> ExperimentConfig:
    """Make the config of a linear probe, fitted to convergence (logistic regression)."""
    return CONFIG["get_config"]("probe")


STUDY = Study(
    name="example_pretraining",
    title="Example: a linear probe before and after self-supervised pre-training",
    settings=lambda: (
        Setting(at={**AT, "weights": "initial"}, config=probe(), seeds=SEEDS),
        Setting(
            at={**AT, "weights": "pre-trained"},
            config=probe(),
            after=Setting(at=AT, config=CONFIG["get_config"]()),
        ),
    ),
    rows=("weights",),
    figure=Figure(kind="dots", lines="weights"),
    rates=(),
    seeds=SEEDS,
    note=(
        "Each seed is pre-trained and probed by itself. Drawn images: the numbers say nothing about"
        " patients."
    ),
)
