"""Which cells a study has, which are due, and what is written down of them."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.fields import as_dict, field_names, set_fields, within
from fmi_jax.flags import assign
from fmi_jax.nn import hardware
from fmi_jax.protocols.registry import PROTOCOLS
from fmi_jax.rules import earlier_defaults
from fmi_jax.study import estimate, published as published_module
from fmi_jax.study.cells import Cell, candidates, cell_id, chosen, due
from fmi_jax.study.plan import Plan, make_plan, select
from fmi_jax.study.registry import STUDIES, find_study
from fmi_jax.study.spec import Setting, Study
from fmi_jax.study.state import Score

RATES = (1e-4, 1e-3, 1e-2)
SHARED = Path(__file__).parent.parent.parent.parent / "shared"


def config(protocol: str = "finetune", **data: object) -> ExperimentConfig:
    made = ExperimentConfig(protocol=protocol)
    made.data = dataclasses.replace(made.data, **data)
    return made


def setting(protocol: str = "finetune", **at: str) -> Setting:
    return Setting(at={"dataset": "synthetic", **at}, config=config(protocol))


def grid(*settings: Setting, **values: object) -> Study:
    return Study(name="grid", title="A grid", settings=lambda: settings, rows=("model",), **values)


def lr_and_seed(cells: list[Cell]) -> list[tuple[float | None, int | None]]:
    return [(cell.learning_rate, cell.seed) for cell in cells]


def test_rates_are_searched_with_one_seed_and_the_best_on_validation_gets_the_others():
    one = setting()
    first = due(one, RATES, 3, product=False, scores={})
    assert lr_and_seed(first) == [(1e-4, 0), (1e-3, 0), (1e-2, 0)]
    scores = {first[0].id: Score("accuracy", 0.7), first[1].id: Score("accuracy", 0.8)}
    assert due(one, RATES, 3, product=False, scores=scores) == first  # one is still at work
    scores[first[2].id] = Score("accuracy", 0.8)
    then = due(one, RATES, 3, product=False, scores=scores)
    assert lr_and_seed(then[3:]) == [(1e-3, 1), (1e-3, 2)]  # the first of equal ones
    assert chosen(then, scores) is then[1]


def test_a_rate_that_failed_or_is_undefined_is_not_chosen_and_less_loss_is_better():
    one = setting()
    first = due(one, RATES, 2, product=False, scores={})
    ended = (Score("loss", 0.5), Score("loss", 0.3), None)
    scores = {cell.id: score for cell, score in zip(first, ended, strict=True)}
    assert chosen(first, scores) is first[1]
    scores[first[1].id] = Score("loss", math.nan)
    assert chosen(first, scores) is first[0]
    assert chosen(first, dict.fromkeys(scores)) is None
    assert due(one, RATES, 2, product=False, scores=dict.fromkeys(scores)) == first


def test_the_full_product_does_not_choose():
    cells = due(setting(), RATES, 2, product=True, scores={})
    assert lr_and_seed(cells) == [(rate, seed) for rate in RATES for seed in (0, 1)]


def test_a_grid_of_heads_is_one_cell_of_all_rates_and_seeds():
    (cell,) = due(setting("probe_grid"), RATES, 4, product=False, scores={})
    assert cell.config.probe_grid.learning_rates == RATES
    assert cell.config.probe_grid.seeds == 4
    (own,) = candidates(setting("probe_grid"), (), 1)
    assert own.config.probe_grid == ExperimentConfig().probe_grid


def test_what_draws_nothing_is_one_cell():
    for protocol in ("knn", "logistic", "timing"):
        (cell,) = due(setting(protocol), RATES, 5, product=False, scores={})
        assert cell.learning_rate is cell.seed is None


def test_no_rates_means_that_of_the_config():
    cells = due(setting(), (), 2, product=False, scores={})
    assert lr_and_seed(cells) == [(ExperimentConfig().optim.learning_rate, seed) for seed in (0, 1)]


def test_an_analysis_waits_for_the_network_that_is_chosen():
    before = setting()
    analysis = Setting(at={"dataset": "synthetic"}, config=config("cka"), after=before)
    first = due(analysis, RATES, 2, product=False, scores={})
    assert first == due(before, RATES, 2, product=False, scores={})
    values = (0.1, 0.3, 0.2)
    scores = {cell.id: Score("accuracy", v) for cell, v in zip(first, values, strict=True)}
    *trained, last = due(analysis, RATES, 2, product=False, scores=scores)
    assert lr_and_seed(trained[3:]) == [(1e-3, 1)]
    assert last.parent is not None
    assert last.parent.id == first[1].id == last.config.cka.run
    assert last.config.protocol == "cka"


def test_a_run_may_follow_another_with_rates_and_seeds_of_its_own():
    """Fine-tune, probe the outcome with every rate, and compare the layers of the best probe."""
    tuned = setting()
    probe = Setting(at={"dataset": "synthetic"}, config=config("linear_probe"), after=tuned)
    layers = Setting(at={"dataset": "synthetic"}, config=config("cka"), after=probe)

    def run(cells: list[Cell], values: tuple[float, ...]) -> None:
        known.update({cell.id: Score("accuracy", v) for cell, v in zip(cells, values, strict=True)})

    known: dict[str, Score | None] = {}
    first = due(layers, RATES, 2, product=False, scores=known)
    run(first, (0.1, 0.3, 0.2))
    (second, *more) = due(layers, RATES, 2, product=False, scores=known)[3:]
    assert second.learning_rate == 1e-3
    assert lr_and_seed(more) == [(1e-4, 0), (1e-3, 0), (1e-2, 0)]
    assert {cell.parent.id for cell in more} == {cell.config.backbone.run for cell in more}
    assert {cell.parent.id for cell in more} == {first[1].id}
    run([second, *more], (0.3, 0.5, 0.4, 0.4))
    *_, other_seed, last = due(layers, RATES, 2, product=False, scores=known)
    assert lr_and_seed([other_seed]) == [(1e-4, 1)]
    assert last.config.cka.run == more[0].id
    names = {cell.id for cell in candidates(probe, RATES, 2)}
    assert len(names) == 3 * 3 * 2  # rates of the first, rates and seeds of the second


def test_a_cell_is_named_by_what_decides_its_numbers():
    base = cell_id(config())
    assert base.startswith("synthetic-dinov2_vitb14-finetune-")
    assert cell_id(config(data_dir="elsewhere", threads=7)) == base
    assert cell_id(config(shots=3)) != base
    assert cell_id(ExperimentConfig(image_size=225)) != base


@pytest.mark.parametrize("name", STUDIES)
def test_no_cell_is_renamed(name: str):
    """A finished cell whose id has changed would be run again.

    `benchmarks/same_numbers.py` says which setting's ids have.
    """
    plan = make_plan(STUDIES[name])
    ids = "\n".join(cell.id for s in plan.settings for cell in plan.candidates(s))
    known = json.loads((Path(__file__).parent.parent / "fixtures" / "cells_1.json").read_text())
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == known[name]


def test_studies_share_the_cells_they_have_in_common():
    table = make_plan(STUDIES["table2"])
    figure = make_plan(STUDIES["fig7"])
    of_table = table.all_cells(table.settings)
    of_figure = figure.all_cells(figure.settings)
    trained = {id for id, cell in of_figure.items() if cell.parent is None}
    assert trained < of_table.keys()
    assert len(of_figure) > len(trained)
    assert make_plan(STUDIES["fig1"]).all_cells(make_plan(STUDIES["fig1"]).settings).keys() == (
        of_table.keys()
    )


def test_how_many_cells_there_will_be():
    plan = make_plan(grid(setting(model="a"), setting("knn", model="b")), rates=RATES, seeds=5)
    assert plan.count(plan.settings) == 3 + 4 + 1
    table = make_plan(STUDIES["table1"])
    # 8 models under a linear head, each one run; 5 under a DeiT-B, each 4 rates and 4 more seeds.
    assert table.count(table.settings) == 4 * (8 + 5 * 8)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_cells_that_can_be_run(name: str):
    plan = make_plan(STUDIES[name])
    for one in plan.settings:
        assert {*plan.study.rows} - {*one.at} == set() or plan.study.figure is not None
        assert "dataset" in one.at
        if one.config is None:
            assert one.why_not
    json.dumps(plan.planned().to_json(), allow_nan=False)
    assert plan.count(plan.settings) > 0
    with pytest.raises(UsageError, match="coordinate for --slice"):
        select(plan.settings, {"datset": ["ddsm"]}, (1, 1))


def test_slices_and_shards_divide_the_settings():
    plan = make_plan(STUDIES["table2"])
    part = select(plan.settings, {"dataset": ["ddsm"], "head": ["linear"]}, (1, 1))
    assert [s.at["model"] for s in part] == [*dict.fromkeys(s.at["model"] for s in part)]
    assert len(part) == 8
    shards = [select(plan.settings, {}, (i, 3)) for i in (1, 2, 3)]
    assert sum(map(len, shards)) == len(plan.settings)
    assert all(shards)
    # What needs a common cell is in one shard.
    figure = make_plan(STUDIES["fig7"])
    analysed = {s.after.at["model"] + s.at["dataset"]: s for s in figure.settings if s.after}
    for i in (1, 2, 3):
        names = {s.at["model"] + s.at["dataset"] for s in shards[i - 1] if s.at["head"] == "linear"}
        mine = select(figure.settings, {}, (i, 3))
        assert {name for name, s in analysed.items() if s in mine} == names
    with pytest.raises(
        UsageError, match=r"unknown model for --slice 'dinov3'. Did you mean 'dinov"
    ):
        select(plan.settings, {"model": ["dinov3"]}, (1, 1))
    with pytest.raises(UsageError, match="i from 1 to n"):
        select(plan.settings, {}, (4, 3))


def test_values_that_are_set_are_set_everywhere(tmp_path: Path):
    study = STUDIES["fig7"]
    plan = make_plan(study, changed={"train.epochs": "3"}, free={"data.data_dir": str(tmp_path)})
    for one in plan.settings:
        assert one.after is not None
        for experiment in (one.config, one.after.config):
            assert experiment is not None
            assert experiment.train.epochs == 3.0
            assert experiment.data.data_dir == str(tmp_path)
    assert study.settings()[0].config.train.epochs != 3  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"Did you mean 'train\.epochs'"):
        make_plan(study, changed={"train.epoch": "3"})
    with pytest.raises(UsageError, match=r"'seed'\. Did you mean 'train\.seed'\?$"):
        make_plan(study, changed={"seed": "3"})
    with pytest.raises(UsageError, match=r"train\.epochs=-1"):
        make_plan(study, changed={"train.epochs": "-1"})
    for wrong in ((1e-3, 1e-3), (0.0,)):
        with pytest.raises(UsageError, match="different numbers above 0"):
            make_plan(study, rates=wrong)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.learning_rate", "3e-4", 3e-4),
        ("train.epochs", "7", 7.0),
        ("knn.k", "(20, 200)", (20, 200)),
        ("backbone.remat", "True", True),
        ("backbone.remat", "true", True),
        ("backbone.remat", "1", True),
        ("knn.temperature", "(1, 2)", (1.0, 2.0)),
        ("probe_grid.learning_rates", "1e-3", (1e-3,)),
        ("cka.other", "sam_vit_b:sa1b", ("sam_vit_b:sa1b",)),
        ("data.name", "ddsm", "ddsm"),
        ("image_size", "384", 384),
    ],
)
def test_a_field_is_set_as_it_is_typed(name: str, text: str, value: object):
    made = ExperimentConfig()
    assign(made, name, text)
    part, _, field = name.rpartition(".")
    values = as_dict(made)[part] if part else as_dict(made)
    assert values[field] == (list(value) if isinstance(value, tuple) else value)
    assert name in field_names(ExperimentConfig)


@pytest.mark.parametrize(
    ("name", "text"), [("train.epochs", "many"), ("image_size", "2.5"), ("backbone.remat", "yes")]
)
def test_a_value_of_another_type_is_refused(name: str, text: str):
    with pytest.raises(UsageError, match=f"{name}={text}: expected"):
        assign(ExperimentConfig(), name, text)


def test_a_plan_is_written_and_another_one_does_not_overwrite_it(tmp_path: Path):
    study = grid(setting(model="a"), Setting(at={"model": "b"}, config=None, why_not="no weights"))
    make_plan(study, rates=RATES, seeds=2).write(tmp_path)
    there = json.loads((tmp_path / "grid.json").read_text())
    assert [s["why_not"] for s in there["settings"]] == ["", "no weights"]
    ids = [cell["id"] for cell in there["settings"][0]["cells"]]
    assert len({*ids}) == 6
    make_plan(study, rates=RATES[:1], seeds=3).write(tmp_path)  # no other numbers, only fewer
    with pytest.raises(UsageError, match=r"with nothing changed.* with train.epochs=3"):
        make_plan(study, changed={"train.epochs": "3"}).write(tmp_path)


def test_a_study_of_ones_own_is_a_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from fmi_jax.config import ExperimentConfig\n"
        "from fmi_jax.study.spec import Setting, Study\n"
        "STUDY = Study(name='mine', title='Mine', rows=('model',), settings=lambda: (\n"
        "    Setting(at={'dataset': 'synthetic', 'model': 'x'}, config=ExperimentConfig()),))\n"
    )
    assert find_study(str(path)).name == "mine"
    path.write_text("STUDY = 1\n")
    with pytest.raises(UsageError, match="expected a module-level STUDY"):
        find_study(str(path))
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        find_study(str(path))
    with pytest.raises(UsageError, match="there is no file"):
        find_study(str(tmp_path / "other.py"))
    with pytest.raises(UsageError, match="Did you mean 'table1'"):
        find_study("tabel1")


def test_the_published_numbers_are_those_that_were_handed_down():
    path = SHARED / "paper_results.json"
    if path.is_file():
        printed = [row for row in published_module.rows() if "digitised" not in row]
        assert json.loads(path.read_text())["rows"] == printed
    found = published_module.published(
        "huix2024_table1", dataset="isic2019", model="dinov1", head="linear"
    )
    assert found is not None
    assert (found.mean, found.std, found.runs, found.metric) == (0.588, 0.015, 5, "recall")
    assert found.source == "Table 1 of arXiv 2310.19522"
    assert published_module.published("huix2024_table1", model="vgg", dataset="ddsm") is None


def test_every_number_of_a_table_stands_beside_its_cell():
    printed = {"table1": 52, "table2": 52, "table3": 20, "tableb": 24}
    for name, count in printed.items():
        found = [s.published for s in STUDIES[name].settings()]
        assert len([number for number in found if number is not None]) == count


def test_a_plan_is_a_plan_of_its_study():
    assert isinstance(make_plan(grid(setting(model="a"))), Plan)


def test_operations_are_counted_also_where_kernels_hide_them(monkeypatch) -> None:
    config = ExperimentConfig(protocol="finetune", image_size=64)
    config.backbone.name, config.backbone.dtype = "deit_nano", "bfloat16"
    on_cpu = estimate.per_image(config, 3, 5)
    monkeypatch.setattr(hardware, "platform", lambda: "gpu")
    monkeypatch.setattr(hardware, "compute_capability", lambda: (9, 0))
    estimate._per_image.cache_clear()
    on_gpu = estimate.per_image(config, 3, 5)
    estimate._per_image.cache_clear()
    # Its 17 tokens are padded to 24, and the last block is computed for [cls] apart.
    for fewer, more in zip(on_cpu, on_gpu, strict=True):
        assert fewer < more < 1.1 * fewer


def test_operations_of_a_judge_of_a_resnet_are_counted() -> None:
    """It trains nothing, and its network has counters without a gradient."""
    made = ExperimentConfig(protocol="knn", image_size=32)
    made.backbone.name = "resnet_nano"
    train, forward = estimate.per_image(made, 3, 5)
    assert 2 * forward < train < 6 * forward  # strided convolutions: zeros count, too


def test_a_new_default_renames_no_cell_that_does_not_read_it() -> None:
    """The first default stays in the name; where the field is read, another value is another."""
    for name, earlier in earlier_defaults(ExperimentConfig()).items():
        for protocol in ("finetune", "knn", "probe_grid"):
            new, old = config(protocol), config(protocol)
            set_fields(old, {name: earlier})
            reads = not within(name, PROTOCOLS[protocol].unread)
            assert (cell_id(new) == cell_id(old)) is not reads, (protocol, name)


def test_a_new_section_renames_no_cell_before_it_is_set() -> None:
    @dataclasses.dataclass(slots=True)
    class Options:
        strength: float = 1.0

    @dataclasses.dataclass(slots=True)
    class Later(ExperimentConfig):
        robustness: Options = dataclasses.field(default_factory=Options)
        adapt: str = ""

    before, later = ExperimentConfig(), Later()
    assert cell_id(later) == cell_id(before)
    later.robustness.strength = 2.0
    assert cell_id(later) != cell_id(before)
    assert cell_id(Later(adapt="full")) not in (cell_id(before), cell_id(later))
