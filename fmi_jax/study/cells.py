"""Cells of a setting: all possible ones, and those that are due now.

A cell is one experiment in a process of its own: a setting with a learning rate and a seed. Its
name is made of everything that decides its numbers. So studies share the cells they have in common
(Figure 7 looks at networks of Table 2), and a changed cell has another name.
"""

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fmi_jax.artifacts.record import FREE
from fmi_jax.config import ExperimentConfig
from fmi_jax.fields import flat, set_fields, within
from fmi_jax.protocols.registry import protocol_of
from fmi_jax.protocols.spec import seeds_alone
from fmi_jax.rules import earlier_defaults
from fmi_jax.study.spec import Setting
from fmi_jax.study.state import Score, best


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One experiment of a study.

    Attributes:
      id: name of the cell and of its folder.
      config: config of the experiment.
      program: key shared by cells of one setting, which compile the same program.
      learning_rate, seed: values that the study chose for this cell; None: it has no such choice.
      parent: cell whose network is analysed or trained further; its folder goes into the field
        that `following` sets.
    """

    id: str
    config: ExperimentConfig
    program: str
    learning_rate: float | None = None
    seed: int | None = None
    parent: "Cell | None" = None

    @property
    def apart(self) -> ExperimentConfig:
        """Experiment without the run that it follows, which is a cell itself."""
        return self.config if self.parent is None else following(self.config, "")


_BASELINE = frozenset(
    f"{section}.{field}".lstrip(".")
    for section, fields in {
        "": "protocol image_size metric",
        "data": "name prepared_size split fraction shots subset_seed",
        "augment": (
            "center_crop crop_scale crop_ratio flip_horizontal flip_vertical "
            "rotation_probability rotation_degrees jitter_probability brightness contrast "
            "saturation hue grayscale_probability blur_probability blur_sigma "
            "affine_probability affine_degrees affine_translate affine_scale affine_shear "
            "perspective_probability perspective_distortion solarize_probability "
            "erase_probability erase_area"
        ),
        "backbone": (
            "name weights stem readout rel_pos_resize last_block frozen_blocks dtype remat "
            "drop_path"
        ),
        "optim": (
            "learning_rate weight_decay warmup_steps warmup_epochs schedule plateau_factor "
            "plateau_patience clip_norm accumulate layer_decay"
        ),
        "train": (
            "epochs max_steps batch_size eval_batch_size eval_every_epochs seed "
            "model_parallel sharding bootstrap_samples"
        ),
        "transformer": "name weights",
        "probe_grid": "learning_rates seeds cached",
        "knn": "k temperature",
        "logistic": "c max_iterations",
        "lora": "rank alpha targets",
        "attentive": "num_heads",
        "cka": "run other features estimator batch_size split",
        "timing": "backbones reference transformer batch_size repeats",
    }.items()
    for field in fields.split()
)
"""Fields that enter every cell's name. Any other field enters it only if it differs from its
default, so that a new field or section does not rename finished cells."""


@functools.cache
def candidates(setting: Setting, rates: tuple[float, ...], seeds: int) -> tuple[Cell, ...]:
    """List every cell that the number of a setting could need, by rate and then by seed.

    Args:
      setting: setting that can be run.
      rates: learning rates to try, unless the setting has its own; empty: only that of the config.
      seeds: number of runs per rate, unless the setting has its own.
    """
    assert setting.config is not None
    program, before, paired = cell_id(setting.config), [None], False
    if setting.after is not None:
        followed = candidates(setting.after, rates, seeds)
        paired = by_seed(followed)
        before = [cell for cell in followed if paired or cell.seed == followed[0].seed]
    rates = rates if setting.rates is None else setting.rates
    seeds = seeds if setting.seeds is None else setting.seeds
    cells = []
    for parent in before:
        config = setting.config if parent is None else following(setting.config, parent.id)
        variants = protocol_of(config).variants(config, rates, seeds)
        if setting.seeds is not None and all(variant.seed is None for variant in variants):
            variants = seeds_alone(config, rates, seeds)
        for variant in variants:
            if paired and parent is not None and variant.seed not in (None, parent.seed):
                continue
            named = (variant.learning_rate, variant.seed) != (None, None)
            own = variant if parent is None or named else parent
            cells.append(
                Cell(
                    id=cell_id(variant.config),
                    config=variant.config,
                    program=program,
                    learning_rate=own.learning_rate,
                    seed=own.seed,
                    parent=parent,
                )
            )
    return tuple(cells)


def by_seed(cells: Sequence[Cell]) -> bool:
    """Test whether cells differ in their seeds alone: nothing is chosen among them."""
    return len(cells) > 1 and all(cell.learning_rate is None for cell in cells)


def following(config: ExperimentConfig, run: str) -> ExperimentConfig:
    """Copy the experiment config and set the run it follows: a cell's name, or a folder.

    A judge of runs has a field for it; any other experiment starts from the run's backbone.
    """
    config = copy.deepcopy(config)
    set_fields(config, {protocol_of(config).own.after or "backbone.run": run})
    return config


def due(
    setting: Setting,
    rates: tuple[float, ...],
    seeds: int,
    *,
    product: bool,
    scores: Mapping[str, Score | None],
) -> list[Cell]:
    """List the cells of a setting that are known to be needed, in the order in which to run them.

    These are every learning rate with one seed and, when all of these have ended, the other seeds
    of the rate that is best on validation. With `product` every rate has every seed.

    Args:
      setting: setting that can be run.
      rates, seeds: same as for `candidates`.
      product: True to run every rate with every seed.
      scores: score of every cell that has ended, by id; None: it failed.
    """
    cells, before = list(candidates(setting, rates, seeds)), []
    if setting.after is not None:
        before = due(setting.after, rates, seeds, product=product, scores=scores)
        possible = {cell.id for cell in candidates(setting.after, rates, seeds)}
        parents = [cell for cell in before if cell.id in possible]
        if by_seed(parents):
            ended = all(cell.id in scores for cell in parents)
            networks = {cell.id for cell in parents if ended and scores[cell.id] is not None}
        else:
            network = chosen(parents, scores)
            networks = set() if network is None else {network.id}
        if not networks:
            return before
        cells = [cell for cell in cells if cell.parent and cell.parent.id in networks]
    return before + _due(cells, product=product, scores=scores)


def _due(cells: list[Cell], *, product: bool, scores: Mapping[str, Score | None]) -> list[Cell]:
    if product or len({cell.learning_rate for cell in cells}) == 1:
        return cells
    searched = [cell for cell in cells if cell.seed == cells[0].seed]
    found = chosen(searched, scores)
    if found is None:
        return searched
    return searched + [
        cell
        for cell in cells
        if cell.learning_rate == found.learning_rate and cell.seed != found.seed
    ]


def chosen(cells: Sequence[Cell], scores: Mapping[str, Score | None]) -> Cell | None:
    """Select the cell of the first seed with the best rate on validation; the first of equal ones.

    None before all rates have ended. A failed cell (mostly, its rate is too high) is not chosen.
    """
    first = [cell for cell in cells if cell.seed == cells[0].seed]
    if any(cell.id not in scores for cell in first):
        return None
    sound = [(cell, score) for cell in first if (score := scores[cell.id]) is not None]
    return best(sound) if sound else None


def cell_id(config: ExperimentConfig) -> str:
    """Make a cell's name `<data set>-<backbone>-<protocol>-<digits>`; digits hash the config.

    A field that the experiment does not read stands there with its first default, so that a new
    default renames no cell.
    """
    default, earlier = _defaults(type(config)), _earlier(type(config))
    unread = protocol_of(config).unread
    values: dict[str, Any] = {}
    for name, value in flat(config).items():
        if name in _BASELINE or (name not in FREE and value != default[name]):
            if within(name, unread):
                value = earlier.get(name, value)
            section, _, field = name.rpartition(".")
            (values.setdefault(section, {}) if section else values)[field] = value
    digits = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
    return f"{config.data.name}-{config.backbone.name}-{config.protocol}-{digits}"


@functools.cache
def _defaults(kind: type[ExperimentConfig]) -> dict[str, Any]:
    return flat(kind())


@functools.cache
def _earlier(kind: type[ExperimentConfig]) -> dict[str, Any]:
    return json.loads(json.dumps(earlier_defaults(kind())))
