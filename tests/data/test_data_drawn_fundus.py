"""The synthetic fundus set: the files, the grading rule, and that nothing else tells the grade."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fmi_jax.data.raw.drawn import fundus
from fmi_jax.errors import UserError

COUNT, SEED = 160, 7
KINDS = ("microaneurysm", "haemorrhage", "hard exudate", "cotton-wool spot")


def read_table(folder: Path) -> list[tuple[str, int]]:
    with open(folder / "train.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id_code", "diagnosis"]
    return [(name, int(grade)) for name, grade in rows]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, dict[str, fundus.Photograph]]:
    """The folder of a set, and its photographs by id as they were drawn."""
    path = tmp_path_factory.mktemp("synthetic") / "raw"
    photos = {}
    draw_one = fundus.photograph

    def record(seed, index, grade):
        photo = draw_one(seed, index, grade)
        photos[photo.id] = photo
        return photo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fundus, "photograph", record)
        fundus.draw(path, COUNT, SEED)
    return path, photos


@pytest.fixture(scope="module")
def folder(drawn) -> Path:
    return drawn[0]


@pytest.fixture(scope="module")
def table(folder) -> list[tuple[str, int]]:
    return read_table(folder)


@pytest.fixture(scope="module")
def pictures(folder, table) -> list[np.ndarray]:
    return [np.asarray(Image.open(folder / "train_images" / f"{name}.png")) for name, _ in table]


@pytest.fixture(scope="module")
def lesions(drawn, table) -> list[tuple[fundus.Lesion, ...]]:
    return [drawn[1][name].lesions for name, _ in table]


def test_layout_is_that_of_aptos2019(folder, table):
    names = [name for name, _ in table]
    assert len(set(names)) == COUNT
    assert all(len(name) == 12 and set(name) <= set("0123456789abcdef") for name in names)
    assert {p.stem for p in (folder / "train_images").iterdir()} == set(names)
    assert {p.name for p in folder.iterdir()} == {"train.csv", "train_images", "SYNTHETIC.txt"}
    assert "no\npatient" in (folder / "SYNTHETIC.txt").read_text()


def test_grades_have_the_declared_shares(table):
    shares = np.bincount([grade for _, grade in table], minlength=5) / COUNT
    np.testing.assert_allclose(shares, fundus.GRADE_SHARES, atol=1 / COUNT)


def test_photographs_differ_in_size_and_shape(pictures):
    sizes = np.array([p.shape[:2] for p in pictures])
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in pictures)
    assert len(np.unique(sizes, axis=0)) > 0.8 * COUNT
    assert np.ptp(sizes[:, 1]) > 150
    assert np.ptp(sizes[:, 1] / sizes[:, 0]) > 0.3


def test_a_bright_orange_field_lies_in_a_dark_surround(pictures):
    for pixels in pictures:
        h, w = pixels.shape[:2]
        corner = pixels[: h // 40, : w // 40].mean()
        red, green, blue = pixels[h // 4 : -h // 4, w // 4 : -w // 4].mean((0, 1))
        assert corner < 15 < blue < green < red


def test_a_seed_gives_the_same_bytes_whatever_the_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(fundus, "available_cores", lambda: (0,))
    fundus.draw(tmp_path / "one", 7, SEED)
    monkeypatch.setattr(fundus, "available_cores", lambda: tuple(range(5)))
    fundus.draw(tmp_path / "five", 7, SEED)
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*")]
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "five" / file).read_bytes()
    fundus.draw(tmp_path / "other", 7, SEED + 1)
    assert read_table(tmp_path / "other") != read_table(tmp_path / "one")


def test_the_lesions_drawn_are_those_of_the_rule(table, lesions):
    for (_, grade), found in zip(table, lesions, strict=True):
        lines = {line.kind: line for line in fundus.RULE[grade]}
        assert {lesion.kind for lesion in found} == set(lines)
        for kind, line in lines.items():
            radii = [lesion.radius for lesion in found if lesion.kind is kind]
            assert line.count[0] <= len(radii) <= line.count[1]
            assert line.radius[0] <= min(radii)
            assert max(radii) <= line.radius[1]


def test_lesion_counts_alone_decide_the_grade():
    for low, high in zip(fundus.RULE, fundus.RULE[1:], strict=False):
        most = {line.kind: line.count[1] for line in low}
        for line in high:
            assert line.count[0] > most.get(line.kind, 0)


def test_lesions_are_visible_where_they_were_drawn():
    """Each kind is as much darker or brighter than the retina around it as its tint says."""
    view = fundus.draw_view(np.random.default_rng(3))
    found = fundus.place(np.random.default_rng(4), view, fundus.RULE[4])
    pixels, _ = fundus.render(np.random.default_rng(5), view, found)
    green = pixels[..., 1].astype(float)
    contrast: dict[str, list[float]] = {}
    for lesion in found:
        at = view.pixel(lesion.x, lesion.y)
        radius = lesion.radius * view.radius
        inside = _around(green, at, max(radius * 0.5, 1)).mean()
        outside = np.median(_around(green, at, radius * 2 + 0.03 * view.radius))
        contrast.setdefault(lesion.kind.name, []).append(inside / outside)
    median = {name: float(np.median(values)) for name, values in contrast.items()}
    assert median["haemorrhage"] < 0.6
    assert median["microaneurysm"] < 0.8
    assert median["cotton-wool spot"] > 1.1
    assert median["hard exudate"] > 1.2


def _around(plane: np.ndarray, at: tuple[float, float], reach: float) -> np.ndarray:
    column, row, reach = round(at[0]), round(at[1]), round(reach)
    rows = slice(max(row - reach, 0), row + reach + 1)
    return plane[rows, max(column - reach, 0) : column + reach + 1]


MODELS = {
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "random forest": RandomForestClassifier(100, random_state=0),
}


def cross_validated_kappa(model: str, features: list, table: list[tuple[str, int]]) -> float:
    grades = [grade for _, grade in table]
    folds = StratifiedKFold(4, shuffle=True, random_state=0)
    guesses = cross_val_predict(MODELS[model], np.array(features), grades, cv=folds)
    return cohen_kappa_score(grades, guesses, weights="quadratic")


@pytest.mark.parametrize("model", MODELS)
def test_the_grade_cannot_be_read_off_file_size_image_size_or_mean_colour(
    folder, table, pictures, model
):
    features = []
    for (name, _), pixels in zip(table, pictures, strict=True):
        size = (folder / "train_images" / f"{name}.png").stat().st_size
        height, width = pixels.shape[:2]
        features.append((size, size / pixels.size, width, height, *pixels.mean((0, 1))))
    # Guessing has a standard deviation of about 0.08 on so few images.
    kappa = cross_validated_kappa(model, features, table)
    assert kappa < 0.2


def test_the_grade_can_be_read_off_the_lesions(table, lesions):
    areas = [
        [sum(o.radius**2 for o in found if o.kind.name == kind) for kind in KINDS]
        for found in lesions
    ]
    assert cross_validated_kappa("random forest", areas, table) > 0.95


def test_a_second_draw_of_the_same_set_changes_nothing(tmp_path):
    fundus.draw(tmp_path / "set", 3, 0)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")}
    fundus.draw(tmp_path / "set", 3, 0)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").rglob("*")} == before


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "train.csv").write_text("id_code,diagnosis\n0123456789ab,2\n")
    with pytest.raises(UserError, match=r"not empty.*expected an empty or a new folder"):
        fundus.draw(tmp_path, 3, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["train.csv"]


def test_an_interrupted_draw_leaves_no_set_and_the_next_one_succeeds(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fundus, "photograph", fail)
        with pytest.raises(KeyboardInterrupt):
            fundus.draw(tmp_path / "set", 3, 0)
    assert not (tmp_path / "set").exists()
    fundus.draw(tmp_path / "set", 3, 0)
    assert len(read_table(tmp_path / "set")) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
