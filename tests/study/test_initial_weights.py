"""The studies that pre-train first: what runs before what, at which price, beside which numbers."""

import copy
import csv
import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
import short_runs
import torch

from fmi_jax import cli
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.fields import flat, set_fields
from fmi_jax.models.base import Execution, ParameterKeys, create, parameters
from fmi_jax.models.initialisation import redraw
from fmi_jax.models.registry import BACKBONES
from fmi_jax.rules import validate
from fmi_jax.run import experiment
from fmi_jax.study import estimate
from fmi_jax.study.cells import due
from fmi_jax.study.grids import initial_weights
from fmi_jax.study.ledger import Ledger
from fmi_jax.study.plan import make_plan
from fmi_jax.study.registry import STUDIES, find_study
from fmi_jax.study.report.comparisons import compared_coordinate
from fmi_jax.study.spec import Setting, Study
from fmi_jax.study.state import NO_SCORE, Score

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_published_number_stands_beside_both_recipes() -> None:
    plan = make_plan(STUDIES["initialisation"])
    found = [setting.published for setting in plan.settings]
    assert len(found) == 36
    assert {number.statistic for number in found} == {"median"}
    assert {number.runs for number in found} == {5}
    assert compared_coordinate(plan.planned()) == "init"
    of = {tuple(setting.at.values()): setting.published.mean for setting in plan.settings}
    assert of["aptos2019", "random", "deit_small", "paper"] == 0.687
    assert of["isic2019", "imagenet+dino", "deit_small", "code"] == 0.853
    assert of["ddsm", "imagenet", "resnet50", "code"] == 0.953
    # Random weights: four rates and four more seeds. Other weights: five seeds. Six pre-trainings.
    assert plan.count(plan.settings) == 12 * (4 + 4) + 2 * 12 * 5 + 6
    assert sum(s.at.get("init") == "dino" and s.config is not None for s in _tables()) == 8


def _tables() -> tuple[Setting, ...]:
    return make_plan(STUDIES["in_domain"]).settings


def test_a_pretraining_runs_first_and_once() -> None:
    plan = make_plan(STUDIES["initialisation"])
    both = [s for s in plan.settings if s.at["init"] == "imagenet+dino"]
    both = [s for s in both if (s.at["dataset"], s.at["model"]) == ("ddsm", "resnet50")]
    (first,) = plan.due(both, {}).values()
    assert (first.config.protocol, first.config.backbone.weights) == ("dino", "in1k")
    after = [*plan.due(both, {first.id: NO_SCORE}).values()]
    assert after[0].id == first.id
    assert [cell.seed for cell in after[1:]] == [0, 1, 2, 3, 4] * 2
    assert {cell.config.backbone.run for cell in after[1:]} == {first.id}
    assert not any(cell.config.backbone.weights for cell in after[1:])


def test_rates_are_searched_for_random_weights_alone() -> None:
    for given, expected in ((None, {"random": 4, "imagenet": 1}), ((1e-4, 1e-3), {"random": 2})):
        plan = make_plan(STUDIES["initialisation"], rates=given)
        for setting in plan.settings:
            if setting.at["init"] in expected:
                rates = {cell.learning_rate for cell in plan.candidates(setting)}
                assert len(rates) == expected[setting.at["init"]]


def test_the_pretraining_is_the_recipe_of_the_configs() -> None:
    """Apart from its length and batch, which are an author's, and the data set."""
    ours = initial_weights.pretraining("isic2019", "deit_small").config
    assert ours is not None
    theirs = runpy.run_path(str(ROOT / "configs" / "dino.py"))["get_config"]("study")
    theirs.data.name = "isic2019"
    set_fields(theirs, {"train.batch_size": 256, "train.epochs": 300})
    assert flat(ours) == flat(theirs)


@pytest.mark.parametrize("name", ["initialisation", "in_domain"])
def test_a_study_prices_its_pretrainings(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    plan = make_plan(STUDIES[name])
    monkeypatch.setattr(
        estimate, "operations", lambda config: 1e15 if config.protocol == "dino" else 0.0
    )
    said = estimate.describe_plan(plan, plan.settings, Ledger(tmp_path), None)
    assert f"left to compute: {6 if name == 'initialisation' else 4} PFLOP" in said


def test_every_seed_of_a_pretraining_is_followed_by_itself() -> None:
    at = {"dataset": "synthetic"}
    before = Setting(at=at, config=ExperimentConfig(protocol="dino"))
    probe = Setting(at=at, config=ExperimentConfig(protocol="linear_probe"), after=before)
    first = due(probe, (1e-4, 1e-3), 3, product=False, scores={})
    assert [cell.seed for cell in first] == [0, 1, 2]
    scores = dict.fromkeys((cell.id for cell in first), NO_SCORE)
    searched = due(probe, (1e-4, 1e-3), 3, product=False, scores=scores)[3:]
    assert [(cell.learning_rate, cell.seed) for cell in searched] == [(1e-4, 0), (1e-3, 0)]
    for cell, value in zip(searched, (0.1, 0.2), strict=True):
        scores[cell.id] = Score("accuracy", value)
    *_, second, third = due(probe, (1e-4, 1e-3), 3, product=False, scores=scores)
    assert [(c.learning_rate, c.seed) for c in (second, third)] == [(1e-3, 1), (1e-3, 2)]
    assert [c.config.backbone.run for c in (second, third)] == [c.id for c in first[1:]]
    # One that failed has nothing to follow; the others go on.
    scores = {first[0].id: NO_SCORE, first[1].id: None, first[2].id: NO_SCORE}
    one = due(probe, (), 3, product=False, scores=scores)[3:]
    assert [cell.seed for cell in one] == [0, 2]


def test_the_example_probes_what_the_same_seed_began_with() -> None:
    plan = make_plan(find_study(str(ROOT / "examples" / "pretraining.py")))
    initial, pretrained = plan.settings
    assert plan.count(plan.settings) == 3 * 3
    first = plan.due(plan.settings, {})
    assert len(first) == 6  # the initial weights of three seeds, and three pre-trainings
    cells = plan.candidates(pretrained)
    assert [cell.seed for cell in cells] == [0, 1, 2]
    assert [cell.config.train.seed for cell in plan.candidates(initial)] == [0, 1, 2]
    for cell in cells:
        assert cell.parent is not None
        assert (cell.parent.seed, cell.parent.id) == (cell.seed, cell.config.backbone.run)
        before = cell.parent.config
        assert initial.config is not None
        assert before.backbone == initial.config.backbone
        assert before.data == initial.config.data
        assert before.image_size == initial.config.image_size


def test_a_study_of_pretrained_seeds_runs_and_is_reported(tmp_path: Path) -> None:
    squares = short_runs.prepare_squares(tmp_path / "squares")
    squares = dataclasses.replace(squares, metric="accuracy")
    squares.optim.warmup_steps, squares.train.max_steps = 0, 2
    before = dataclasses.replace(copy.deepcopy(squares), protocol="simsiam", metric="")
    set_fields(before, {"simsiam.projection_width": 17, "simsiam.prediction_width": 7})
    probe = dataclasses.replace(squares, protocol="linear_probe")
    at = {"dataset": "squares"}
    study = Study(
        name="seeds",
        title="Seeds",
        settings=lambda: (
            Setting(at={**at, "weights": "initial"}, config=probe),
            Setting(
                at={**at, "weights": "pre-trained"},
                config=probe,
                after=Setting(at=at, config=before),
            ),
        ),
        rows=("weights",),
        rates=(),
        seeds=3,
    )
    plan, ledger = make_plan(study), Ledger(tmp_path)
    while cells := [
        cell
        for cell in plan.due(plan.settings, _scores(plan, ledger)).values()
        if cell.id not in _scores(plan, ledger)
    ]:
        claim = ledger.claim(cells[0])
        assert claim is not None
        experiment.run(short_runs.config_of_cell(claim.folder), claim.folder)
        claim.release()
    assert len(_scores(plan, ledger)) == plan.count(plan.settings) == 3 + 3 + 3
    plan.write(tmp_path)
    assert cli.main(["report", "--root", str(tmp_path)]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Steps to 95% of the best validation value" in page
    assert "9 finished cells" in page  # the pre-trainings among them
    numbers = _numbers(tmp_path)
    assert {row["seeds"] for row in numbers} == {"3"}
    assert all(float(row["ci_low"]) < float(row["ci_high"]) for row in numbers)
    for row in numbers:
        assert 0 < float(row["steps_to_95_percent"]) <= float(row["steps_to_best"])
    assert len((tmp_path / "report" / "comparisons.csv").read_text().splitlines()) == 2


def _scores(plan, ledger):
    cells = plan.all_cells(plan.settings)
    return ledger.ended({cell: ledger.state(cell) for cell in cells})


def _numbers(root: Path) -> list[dict[str, str]]:
    with (root / "report" / "numbers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_kernels_are_drawn_by_name() -> None:
    spec = BACKBONES["deit_small"]
    arch = dataclasses.replace(spec.arch, depth=1)
    own = parameters(create(spec.family, arch, Execution(), 0))
    for rule in ("kaiming", "trunc_normal"):
        backbone = create(spec.family, arch, Execution(), 0)
        redraw(backbone, rule, ParameterKeys(jax.random.key(7)))
        drawn = parameters(backbone)
        for name, value in own.items():
            if not name.endswith("kernel"):
                np.testing.assert_array_equal(drawn[name], value, err_msg=name)
                continue
            torch.manual_seed(0)
            reference = torch.empty(value.shape[-1], int(np.prod(value.shape[:-1])))
            if rule == "kaiming":
                torch.nn.init.kaiming_normal_(reference)
            else:
                torch.nn.init.trunc_normal_(reference, std=0.02)
            deviation = reference.std().item()
            if rule == "trunc_normal":  # torch cuts at -2 and 2, we at two deviations
                deviation = 0.02 * 0.8796
            assert abs(drawn[name].std() / deviation - 1) < 0.02, (rule, name)


def test_a_draw_by_name_is_refused_where_nothing_is_drawn() -> None:
    config = ExperimentConfig(protocol="finetune")
    config.backbone.initialisation, config.backbone.weights = "kaiming", "in1k"
    with pytest.raises(UsageError, match="initialisation='kaiming' draws what"):
        validate(config)


def test_a_pretraining_that_goes_on_from_a_run_is_followed_in_every_seed() -> None:
    """Not in the first alone, though all of them start from one and the same run."""
    at = {"dataset": "synthetic"}
    first = Setting(at=at, config=ExperimentConfig(protocol="finetune"), seeds=1)
    more = Setting(at=at, config=ExperimentConfig(protocol="dino"), after=first)
    probe = Setting(at=at, config=ExperimentConfig(protocol="logistic"), after=more)
    (begun,) = due(probe, (), 3, product=False, scores={})
    scores: dict[str, Score | None] = {begun.id: NO_SCORE}
    pretrained = [c for c in due(probe, (), 3, product=False, scores=scores) if c != begun]
    assert [cell.seed for cell in pretrained] == [0, 1, 2]
    scores |= {cell.id: NO_SCORE for cell in pretrained}
    judged = due(probe, (), 3, product=False, scores=scores)[4:]
    assert [cell.config.backbone.run for cell in judged] == [cell.id for cell in pretrained]


def test_operations_of_a_pretraining_of_a_resnet_are_counted() -> None:
    """All of it learns but its counters, which have no gradient."""
    made = ExperimentConfig(protocol="dino", image_size=32)
    made.backbone.name = "resnet_nano"
    train, forward = estimate.per_image(made, 3, 5)
    assert 2 * forward < train < 6 * forward  # strided convolutions: zeros count, too
