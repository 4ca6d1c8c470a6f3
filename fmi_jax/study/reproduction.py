"""Reproduction map: every table and figure of the publications, and what reproducing it takes."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from fmi_jax.config import ExperimentConfig
from fmi_jax.data.registry import DATASETS
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.settings import AugmentConfig, DataConfig, LossConfig, OptimConfig, TrainConfig
from fmi_jax.study.estimate import per_image
from fmi_jax.study.plan import Plan, make_plan
from fmi_jax.study.published import PUBLICATIONS, Published
from fmi_jax.study.registry import STUDIES
from fmi_jax.study.spec import Setting

TFLOPS = 100.0
"""Assumed speed of one H200: a tenth of its dense peak in bfloat16. Nothing was measured on one."""

EPOCHS = 100.0
"""Epochs that a training counts with at most if it ends when validation stops improving."""

UNCOVERED: Mapping[str, Mapping[str, str]] = {
    "huix2024": {},
    "matsoukas2021": {
        "Figure 1, saliency": "pictures without numbers; `--config.protocol=saliency` draws"
        " Grad-CAM and attention of a finished run ([protocols](protocols.md))",
        "Self-supervision by BYOL and SimSiam": "in its code, without published numbers; pre-train"
        " with `configs/dino.py` and another protocol ([pre-training](pretraining.md))",
    },
    "hosseinzadeh2021": {
        "iNat2021-mini": "without published numbers; its weights are a file of your own",
        "RSNA PE in every table and figure": "neither loader nor split was released",
    },
    "hosseinzadeh2025": {
        "Rows of MIMIC-CXR": "MIMIC-CXR has no reader here; their p-values are in the note of"
        " `transfer_domain`",
        "ImageNet-22k, COCO and Places365 as pre-training": "published as figures of which no value"
        " was read; ConvNeXt has `in22k` weights, the others no address here",
        "22 self-supervised methods": "no value was read off the figure, and the weights of eight"
        " further methods (CLSA, PixPro, DenseCL, DetCo, VICRegL, SimSiam, OBoW and DINO but for"
        " `dino_in1k`) have no address here",
        "VinDr-CXR": "not among the columns of the figure that was read; the data set is there"
        " (`vindr_cxr`)",
    },
}
"""Parts of the publications that no study makes, with the reason."""

_INTRODUCTION = f"""\
# Reproduction map

Written by `fmi-jax study map > docs/reproduction.md` from the registered studies; do not edit it.

Each table and figure of the three studies, the command that makes it, and what it needs: prepared
data sets with their split and size ([data](data.md)), and converted weights ([models](models.md)).
We have reproduced none of them: the data sets and the checkpoints are not ours to ship. Published
numbers stand at the end of each section; `fmi-jax report NAME` puts ours beside them.

**Hours** are an estimate for one H200 and one cell after another: operations counted from the
traced program, at {TFLOPS:g} TFLOP/s. That speed is an assumption, a tenth of the dense peak in
bfloat16; no GPU was measured. Image counts are those of the public downloads. A training that ends
when validation stops improving counts with at most {EPOCHS:g} epochs, any other with all of its
own. Cells that studies share count with each of them, and decoding images is left out. `fmi-jax
study plan NAME` counts what is left on your prepared data.
"""

Price = Callable[[Plan], float]
"""Hours of a plan."""


def page(price: Price | None = None) -> str:
    """Write the map as Markdown.

    Args:
      price: hours of a study; None: from operations, which traces every network and takes minutes.
    """
    parts = [_INTRODUCTION]
    for name, title in PUBLICATIONS.items():
        studies = [study for study in STUDIES.values() if study.publication == name]
        plans = [make_plan(study) for study in studies]
        parts.append(f"## {title[0].upper()}{title[1:]}\n")
        head = ("what", "command", "data", "weights", "cells", "hours", "not reproduced, and why")
        rows = [_row(plan, price or hours) for plan in plans]
        rows += [(what, *[""] * 5, why) for what, why in UNCOVERED[name].items()]
        parts.append(_table(head, rows))
        shown: set[Published] = set()
        parts += [part for plan in plans for part in _published(plan, shown)]
    return "\n".join(parts)


def hours(plan: Plan) -> float:
    """Hours that a plan takes on one H200 at the assumed speed, if nothing is there yet."""
    cells = plan.in_the_end(plan.settings, {}).values()
    return sum(_operations(cell.apart) for cell in cells) / (TFLOPS * 1e12) / 3600


def _operations(config: ExperimentConfig) -> float:
    spec = DATASETS[config.data.name]
    train, val, test = spec.sizes.get(config.data.split, (0, 0, 0))
    counts = {"train": round(train * config.data.fraction), "val": val, "test": test}
    if not train:
        return 0.0
    shortened = copy.deepcopy(config)
    if config.train.patience or config.optim.schedule == "plateau":
        shortened.train.epochs = min(config.train.epochs, EPOCHS)
    images = protocol_of(config).images(shortened, counts)
    bare = copy.deepcopy(config)  # as little as decides the operations, so that few are traced
    bare.data, bare.train, bare.optim = DataConfig(), TrainConfig(), OptimConfig()
    bare.augment, bare.loss, bare.metric = AugmentConfig(), LossConfig(), ""
    trained, judged = per_image(bare, spec.channels, 2)
    return trained * images.trained + judged * images.judged


def _chain(settings: Iterable[Setting]) -> Iterator[ExperimentConfig]:
    """Experiments of settings and of those before them."""
    for setting in settings:
        step: Setting | None = setting
        while step is not None:
            if step.config is not None:
                yield step.config
            step = step.after


def _row(plan: Plan, price: Price) -> tuple[str, ...]:
    study, configs = plan.study, [*_chain(plan.settings)]
    data = dict.fromkeys(
        f"`{c.data.name}` ({c.data.split}, {c.data.prepared_size})"
        for c in configs
        if not DATASETS[c.data.name].synthetic
    )
    networks = dict.fromkeys(
        f"`{backbone}:{weights}`"
        for c in configs
        for backbone, weights in (
            (c.backbone.name, c.backbone.weights),
            *((n.backbone, n.weights) for n in protocol_of(c).networks(c)),
        )
        if weights
    )
    reasons = [setting.why_not for setting in plan.settings if setting.config is None]
    cannot = [
        f"{reason} ({reasons.count(reason)} of {len(plan.settings)} numbers)"
        for reason in dict.fromkeys(reasons)
    ]
    return (
        study.place or study.title.partition(":")[0],
        f"`fmi-jax study run {study.name}`",
        ", ".join(data),
        ", ".join(networks),
        f"{plan.count(plan.settings):,}",
        _hours(price(plan)),
        "; ".join(cannot),
    )


def _hours(value: float) -> str:
    return f"{value:,.0f} h" if value >= 10 else f"{value:.2g} h"


def _published(plan: Plan, shown: set[Published]) -> Iterator[str]:
    """Published numbers of a study in a table that is folded in, and its remark.

    Args:
      plan: plan of the study.
      shown: numbers that stand in an earlier table; a table of these alone is left out.
    """
    study = plan.study
    numbers = {setting.published for setting in plan.settings if setting.published is not None}
    new = not numbers <= shown
    shown |= numbers
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for setting in plan.settings:
        if new and (found := setting.published) is not None:
            digits = 3 if abs(found.mean - round(found.mean, 3)) < 1e-9 else 4
            text = f"{found.mean:.{digits}f}"
            text = text if found.std is None else f"{text} ± {found.std:.{digits}f}"
            names = tuple(setting.at.get(name, "") for name in study.rows)
            text = f"≈ {text}" if found.digitised else text
            rows.setdefault(names, {})[setting.at["dataset"]] = text
    if rows or study.note:
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        yield f"\n<details><summary>{study.name}: published</summary>\n"
        if study.note:
            yield f"{study.note}\n"
        if rows:
            if any("≈" in text for row in rows.values() for text in row.values()):
                yield "≈: read off a figure.\n"
            lines = [(*names, *(row.get(c, "") for c in columns)) for names, row in rows.items()]
            yield _table((*study.rows, *columns), lines)
        yield "\n</details>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
