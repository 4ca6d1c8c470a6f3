"""The figures of studies: what they show, and that it can be read."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from study_trees import Images, analyse, cells, finish, setting, single, write_plan

from fmi_jax.study.grids.recipe import DATASETS
from fmi_jax.study.planned import read_studies
from fmi_jax.study.published import published, rows
from fmi_jax.study.report import drawing
from fmi_jax.study.report.comparisons import agreements, compare
from fmi_jax.study.report.drawing import looks
from fmi_jax.study.report.figures import (
    curves,
    dots,
    gain,
    layers,
    published as beside,
    reliability,
    significance,
    time,
)
from fmi_jax.study.report.findings import best_of_columns
from fmi_jax.study.report.numbers import numbers_of
from fmi_jax.study.report.outcomes import Outcomes
from fmi_jax.study.report.relative import gains, iterations, latencies
from fmi_jax.study.report.samples import Cache, Sampler
from fmi_jax.study.report.table import make_table
from fmi_jax.study.spec import Figure as Spec

MODELS = ("sam", "seem", "openclip", "dinov2", "blip", "imnet-1k-sup", "dinov1", "resnet152")


class Drawing:
    """Catches the figure that is saved, and the text that ends up on it."""

    def __init__(self, monkeypatch):
        self.figure = Figure()
        self.texts: list[Text] = []
        original = Text.draw

        def draw(text, renderer, *args, **kwargs):
            if text.get_visible() and text.get_text().strip():
                self.texts.append(text)
            return original(text, renderer, *args, **kwargs)

        def save(figure, *args, **kwargs):
            if figure is not self.figure:  # once, though it is saved as PNG and as PDF
                self.figure = figure
                self.texts.clear()
                FigureCanvasAgg(figure)
                figure.draw_without_rendering()

        monkeypatch.setattr(Text, "draw", draw)
        monkeypatch.setattr(Figure, "savefig", save)

    @property
    def words(self) -> set[str]:
        return {text.get_text() for text in self.texts}

    def check(self) -> None:
        """No text leaves the figure or lies on another; the width is that of a journal."""
        assert self.figure.get_figwidth() <= 180 / 25.4 + 1e-6
        whole = self.figure.bbox
        upright = []
        for text in self.texts:
            box = text.get_window_extent()
            assert min(box.x0, box.y0) >= -1, text.get_text()
            assert max(box.x1 - whole.x1, box.y1 - whole.y1) <= 1, text.get_text()
            assert text.get_fontsize() >= 5
            if text.get_rotation() % 90 == 0:
                upright.append((text.get_text(), box))
        for (a, first), (b, second) in itertools.combinations(upright, 2):
            width = min(first.x1, second.x1) - max(first.x0, second.x0)
            height = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert min(width, height) < 1.5, (a, b)


@pytest.fixture
def drawn(monkeypatch) -> Drawing:
    return Drawing(monkeypatch)


def study(root: Path, settings: list[dict], **fields):
    """Study, numbers, samples and table."""
    write_plan(root, settings, **fields)
    (planned,) = read_studies(root)
    numbers = numbers_of(planned, Outcomes(root))
    samples, wrong = Sampler(Cache(root / "cache"), 700).samples(numbers)
    assert not wrong
    return planned, numbers, samples, make_table(planned, numbers)


def folder(root: Path, name: str) -> Path:
    return root / "cells" / name


@pytest.fixture(scope="module")
def table_study(tmp_path_factory):
    """Eight models under two heads on four data sets, one of them missing."""
    root = tmp_path_factory.mktemp("table")
    settings = []
    for (j, model), dataset in itertools.product(enumerate(MODELS), DATASETS):
        for head in ("linear", "deit_base"):
            name = f"{dataset}-{head}-{model}"
            at = {"dataset": dataset, "head": head, "model": model}
            settings.append(setting(at, cells(name), published=0.5 + 0.05 * j))
            if (model, dataset) != ("blip", "ddsm"):
                made = {"images": Images(name=dataset), "skill": j / 2, "steps": 0}
                finish(folder(root, f"{name}-0.001-0"), **made)  # draws nothing: can be tested
    settings.sort(key=lambda s: s["at"]["head"], reverse=True)
    return study(root, settings, rows=["head", "model"])


def test_dots_stand_in_the_rows_of_the_table(table_study, drawn):
    _, numbers, samples, table = table_study
    dots.draw(table, samples, looks(MODELS), "model")
    drawn.check()
    assert {*DATASETS, *MODELS, "linear", "deit_base", "here", "published"} <= drawn.words
    ax = drawn.figure.axes[0]
    shown = [line for line in ax.lines if line.get_marker() in {"o", "s"} and line.get_zorder() > 1]
    mean = next(n.mean for n in numbers if n.setting.at["model"] == "sam" and n.runs)
    assert any(np.allclose(line.get_xdata(), mean) for line in shown)
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 2 * len(MODELS)
    assert len({look.marker for look in looks(MODELS).values()}) == len(MODELS)


def test_an_analysis_is_no_dot(tmp_path, drawn):
    settings = []
    for model in MODELS[:2]:
        at = {"dataset": "aptos2019", "model": model, "protocol": "finetune"}
        settings.append(setting(at, cells(model)))
        finish(folder(tmp_path, f"{model}-0.001-0"))
    at = {"dataset": "aptos2019", "model": "sam", "protocol": "cka"}
    settings.append(setting(at, single("layers"), "cka"))
    analyse(folder(tmp_path, "layers"), "cka", cka(3, stacked=False))
    _, _, samples, table = study(tmp_path, settings, rows=["protocol", "model"])
    dots.draw(table, samples, looks(MODELS), "model")
    assert "finetune" in drawn.words
    assert "cka" not in drawn.words
    best, highest = best_of_columns(table, samples, [])
    assert "rows that have a number" not in best  # none is missing
    assert "Were all 2 rows equally good" in highest


def test_published_numbers_stand_against_ours(table_study, drawn):
    _, _, samples, table = table_study
    found = agreements(table.numbers, samples, "model")
    assert [a.n for a in found] == [16, 14, 16, 16]
    assert [(a.models, a.ranks.n) for a in found if a.ranks] == [(8, 8), (7, 7), (8, 8), (8, 8)]
    beside.draw(table.numbers, samples, found, looks(MODELS), "model", "head")
    drawn.check()
    assert any("τ = " in word and word.endswith("n = 14") for word in drawn.words)


def test_models_that_differ_are_framed(table_study, drawn):
    planned, numbers, samples, _ = table_study
    both = compare(planned, numbers, samples)
    found = [comparison for comparison in both if comparison.axis == "model"]
    assert len(found) == 8
    saved = significance.draw(found)
    drawn.check()
    frames = [p for ax in drawn.figure.axes for p in ax.patches if isinstance(p, Rectangle)]
    assert len(frames) == sum(pair.differ for c in found[:6] for pair in c.pairs) > 0
    assert saved.caption.endswith("The first 6 of 8 comparisons.")
    assert drawn.figure.get_figheight() < 297 / 25.4


def test_reliability_shows_the_best_of_each_data_set(table_study, drawn):
    _, _, samples, table = table_study
    shown = reliability.chosen(table, samples)
    assert len(shown) == reliability.MOST == 24
    assert {n.setting.at["model"] for n in shown if n.setting.dataset == "aptos2019"} == {
        "imnet-1k-sup",
        "dinov1",
        "resnet152",
    }
    reliability.draw(table, samples)
    drawn.check()


def test_long_names_are_cut_and_long_metrics_wrapped(tmp_path, drawn):
    settings = []
    datasets = [
        f"{n} data set whose name takes much room" for n in ("a", "one more", "this", "yet")
    ]
    models = [f"a model whose name takes as much room, of size {size}" for size in range(3)]
    for (i, dataset), (j, model) in itertools.product(enumerate(datasets), enumerate(models)):
        at = {"dataset": dataset, "protocol": "x" * 60, "model": model}
        settings.append(setting(at, cells(f"{i}-{j}"), published=0.5 + 0.1 * j))
        images = Images(name=dataset, metric="average_precision")
        finish(folder(tmp_path, f"{i}-{j}-0.001-0"), images=images, skill=j, steps=0)
    rows = ["protocol", "model"]
    planned, numbers, samples, table = study(tmp_path, settings, rows=rows)
    dots.draw(table, samples, looks(models), "model")
    drawn.check()
    significance.draw(compare(planned, numbers, samples))
    drawn.check()
    reliability.draw(table, samples)
    drawn.check()
    spec = Spec(kind="curves", x="model", lines="protocol")
    curves.draw(spec, numbers, samples, looks(["x" * 60]))
    drawn.check()


def test_curves_follow_the_order_of_the_settings_and_leave_gaps(tmp_path, drawn):
    settings = []
    for frozen, model, dataset in itertools.product(range(7), MODELS, ("aptos2019", "ddsm")):
        if model == "seem" and frozen > 3:
            continue
        name = f"{dataset}-{model}-{frozen}"
        at = {"dataset": dataset, "model": model, "frozen": str(frozen)}
        settings.append(setting(at, cells(name)))
        if frozen != 5:
            images = Images(name=dataset, count=20)
            finish(folder(tmp_path, f"{name}-0.001-0"), images=images, skill=3 - frozen / 3)
    _, numbers, samples, _ = study(tmp_path, settings, rows=["model", "frozen"])
    spec = Spec(kind="curves", x="frozen", x_label="Frozen blocks")
    curves.draw(spec, numbers, samples, looks(MODELS))
    drawn.check()
    assert {"Frozen blocks", "aptos2019", *MODELS} <= drawn.words
    lines = drawn.figure.axes[0].lines
    assert [len(line.get_xdata()) for line in lines] == [7, 4, 7, 7, 7, 7, 7, 7]
    assert np.isnan(lines[0].get_ydata()[5])
    assert list(lines[0].get_xdata()) == list(range(7))


def test_few_curves_carry_their_names(tmp_path, drawn):
    settings = []
    for size, dataset in itertools.product("sblg", ("aptos2019", "ddsm", "isic2019")):
        name = f"{dataset}-{size}"
        settings.append(setting({"dataset": dataset, "size": size}, cells(name)))
        finish(folder(tmp_path, f"{name}-0.001-0"), images=Images(name=dataset))
    _, numbers, samples, _ = study(tmp_path, settings, rows=["size"])
    spec = Spec(kind="curves", x="size", x_label="Size", lines="dataset")
    curves.draw(spec, numbers, samples, looks(["aptos2019", "ddsm", "isic2019"]))
    drawn.check()
    assert "ddsm\nQuadratic weighted kappa" in drawn.words
    assert not drawn.figure.legends


def test_published_gains_are_those_of_table_2(tmp_path, drawn):
    settings = []
    for model, dataset in itertools.product(MODELS, DATASETS):
        at = {"dataset": dataset, "model": model, "head": "linear"}
        found = published("huix2024_table2", **at)
        assert found is not None
        one = setting(at, cells(f"{dataset}-{model}"), published=found.mean)
        settings.append({**one, "published": {**one["published"], "metric": found.metric}})
        if dataset == "aptos2019" and model in ("sam", "imnet-1k-sup"):
            finish(folder(tmp_path, f"{dataset}-{model}-0.001-0"), skill=1 + len(model) / 9)
    _, numbers, samples, table = study(tmp_path, settings, rows=["head", "model"])
    rows_by_model = {g.at["model"]: g for g in gains(table, samples)}
    assert "imnet-1k-sup" not in rows_by_model
    printed = {
        (row["model"].lower(), row["dataset"]): row["mean"]
        for row in rows()
        if row["table"] == "huix2024_table2" and row["head"] == "linear"
    }
    expected = np.mean(
        [100 * (printed["dinov2", d] / printed["imnet-1k-sup", d] - 1) for d in DATASETS]
    )
    assert rows_by_model["dinov2"].published == pytest.approx(expected)
    assert rows_by_model["dinov2"].datasets == ()
    by_model = {n.setting.at["model"]: n for n in numbers if n.runs}
    ours = 100 * (by_model["sam"].mean / by_model["imnet-1k-sup"].mean - 1)
    assert rows_by_model["sam"].ours == pytest.approx(ours)
    assert rows_by_model["sam"].datasets == ("aptos2019",)
    low, high = rows_by_model["sam"].interval
    assert low < ours < high
    low, high = rows_by_model["dinov2"].published_interval
    assert low < rows_by_model["dinov2"].published < high
    gain.draw(list(rows_by_model.values()), looks(MODELS), "model", "the baseline")
    drawn.check()


def test_cost_is_relative_to_supervised_imagenet_treated_alike(tmp_path, drawn):
    settings = []
    steps = {"sam": 300, "imnet-1k-sup": 100, "seem": 50}
    for backbone, model in itertools.product(("frozen", "fine-tuned"), steps):
        at = {"dataset": "aptos2019", "model": model, "head": "linear", "backbone": backbone}
        settings.append(setting(at, cells(f"{backbone}-{model}")))
        taken = steps[model] * (10 if backbone == "frozen" else 1)
        own = {"name": f"network of {model}"}
        finish(folder(tmp_path, f"{backbone}-{model}-0.001-0"), steps=taken, backbone=own)
    spread = {"median": 2.0, "low": 1.5, "high": 2.5, "mean": 2.0}
    timed = [
        {"backbone": name, "relative_latency": spread, "latency_ms": {"median": 7.0}}
        for name in ("network of sam", "other", "network of sam + deit_base")
    ]
    analyse(folder(tmp_path, "timing"), "timing", {"reference": "deit_base", "rows": timed})
    at = {"dataset": "synthetic", "measured": "inference"}
    settings.insert(0, setting(at, single("timing"), "timing"))
    _, numbers, _, table = study(tmp_path, settings, rows=["backbone", "head", "model"])
    assert len(table.columns) == 1  # no column for what the timing drew
    trained, latency = iterations(table), latencies(numbers)
    assert [row.relative for row in trained] == [3.0, 1.0, 0.5] * 2
    assert [row.row for row in latency] == [
        ("linear", "sam"),
        ("linear", "other"),
        ("deit_base", "sam"),
    ]
    time.draw(trained, latency, looks(MODELS), "model")
    drawn.check()
    assert {"Training", "Inference", "7 ms"} <= drawn.words


def cka(count: int, stacked: bool) -> dict:
    names = ["embedding", *(f"block {i}" for i in range(count))]
    if stacked:
        names += [f"transformer {name}" for name in names]
    matrix = np.eye(len(names)).tolist()
    pair = {"networks": ["a", "b"], "layers": [names, names], "cka": matrix}
    return {"networks": ["a", "b"], "last_layers": [[1, None], [None, 1]], "pairs": [pair]}


@pytest.mark.parametrize("stacked", [False, True])
def test_a_heat_map_for_each_setting_and_a_word_where_there_is_none(tmp_path, drawn, stacked):
    settings = []
    for model, dataset in itertools.product(MODELS, DATASETS):
        name = f"{dataset}-{model}"
        at = {"dataset": dataset, "model": model}
        settings.append(setting(at, single(name), "cka"))
        if (model, dataset) != ("sam", "ddsm"):
            values = cka(4 if model == "seem" else 12, stacked)
            analyse(folder(tmp_path, name), "cka", values, dataset)
    _, _, _, table = study(tmp_path, settings, rows=["model"])
    layers.draw_layers(table)
    drawn.check()
    maps = [ax for ax in drawn.figure.axes if ax.images]
    assert len(maps) == len(MODELS) * len(DATASETS) - 1
    assert {"missing", *MODELS, *DATASETS} <= drawn.words
    parts = [line for line in maps[0].lines if line.get_color() == "white"]
    assert len(parts) == (2 if stacked else 0)


def test_a_matrix_of_models_for_each_data_set(tmp_path, drawn):
    settings = []
    matrix = (np.eye(7) + 0.5).clip(0, 1)
    values = {**cka(4, False), "networks": list(MODELS[:7]), "last_layers": matrix.tolist()}
    values["last_layers"][0][1] = None
    for dataset in DATASETS:
        settings.append(setting({"dataset": dataset}, single(dataset), "cka"))
        analyse(folder(tmp_path, dataset), "cka", values, dataset)
    _, _, _, table = study(tmp_path, settings, rows=[])
    layers.draw_models(table)
    drawn.check()
    assert {"0.50", "1.00", *MODELS[:7], *DATASETS} <= drawn.words


def test_a_figure_is_saved_for_the_screen_and_for_print():
    def make() -> Figure:
        figure = Figure(figsize=(drawing.ONE_COLUMN, 1))
        figure.subplots().set_title("$a_b$ <c>")
        return figure

    first, second = (drawing.save("name", "caption", make) for _ in range(2))
    assert first.png.startswith(b"\x89PNG")
    assert first.pdf.startswith(b"%PDF")
    assert (first.png, first.pdf) == (second.png, second.pdf)
    assert b"/Type3" not in first.pdf
    assert 300 < first.width < 700
