"""The judge of saliency: which images are shown, and what is written."""

import dataclasses
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import short_runs
import tolerances
from PIL import Image

from fmi_jax import cli, parallel
from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.run import conclusion, experiment
from fmi_jax.saliency.agreement import agreement, centred, standard_error
from fmi_jax.saliency.cases import chosen


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    return short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def judged(squares: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a fine-tuning with the judge beside it."""
    folder = tmp_path_factory.mktemp("judged")
    config = short_runs.changed(
        dataclasses.replace(squares, judges=("saliency",)), {"saliency.curves": 7}
    )
    experiment.run(config, folder)
    return folder


def test_beside_a_training_its_network_is_shown(judged: Path) -> None:
    _, finding = Result.read(judged).findings
    assert finding.judge == "saliency"
    kinds = ("correct", "wrong", "uncertain", "curves")
    assert set(finding.figures) <= {f"saliency_{x}.png" for x in kinds}
    page = (judged / "report.html").read_text()
    assert all(caption in page for caption in finding.figures.values())
    with np.load(judged / "saliency.npz") as kept:
        maps = dict(kept)
    count = len(finding.values["cases"])
    assert [len(value) for value in maps.values()] == [count] * len(maps)
    assert maps["heads"].shape == (count, 2, 2, 2)
    assert maps["grad_cam"].shape == maps["rollout"].shape == (count, 2, 2)
    assert maps["gradient_times_input"].shape == (count, 16, 16)
    np.testing.assert_allclose(
        maps["heads"].mean(axis=1), maps["attention"], rtol=tolerances.SAME_FLOAT32
    )
    # As the network sees them: whole, at the size of the run.
    assert maps["images"].shape == (count, 16, 16, 3)
    assert len(np.unique(maps["images"])) > 100


def test_pixels_are_deleted_and_inserted_without_masks(judged: Path) -> None:
    _, finding = Result.read(judged).findings
    found = finding.values["curves"]
    assert found["images"] == 7
    titles = ["Attention", "Rollout", "Grad-CAM", "Gradient x input"]
    assert list(found["methods"]) == titles
    for row in (*(m["trained"] for m in found["methods"].values()), found["Centred Gaussian"]):
        assert 0 < row["deletion"]["value"] < 1
        by_hand = row["insertion"]["value"] - row["deletion"]["value"]
        assert row["difference"]["value"] == pytest.approx(by_hand)
    assert len(Image.open(judged / "saliency_curves.png").getcolors(2**20)) > 10
    assert "their difference" in finding.text
    assert "7 images at even distances" in finding.text
    # The squares are as blue and as red when they are blurred.
    assert any(note.startswith("Blurring hides little") for note in finding.notes)


def test_new_images_are_drawn_beside_their_predictions(
    squares: ExperimentConfig, judged: Path, tmp_path: Path
) -> None:
    raw = Path(squares.data.data_dir).parent / "raw"
    images = [str(raw / "blue" / "000.png"), str(raw / "red" / "001.png")]
    drawn = tmp_path / "looks"
    arguments = ["--workdir", str(judged), "--out", str(tmp_path / "p.csv")]
    assert cli.main(["predict", *images, *arguments, "--saliency", str(drawn)]) == 0
    assert [path.name for path in sorted(drawn.iterdir())] == ["000_1.png", "001_2.png"]
    for path in drawn.iterdir():
        assert len(np.unique(np.asarray(Image.open(path)))) > 100


def test_eight_devices_that_share_images_heads_and_parameters_find_the_same_maps(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    assert jax.device_count() == 8
    short_runs.run(short_runs.changed(squares, {"train.sharding": "fsdp"}), tmp_path / "trained")
    fields = {
        "protocol": "saliency",
        "saliency.run": str(tmp_path / "trained"),
        "saliency.curves": 5,
    }
    config = short_runs.changed(squares, fields)
    found, maps = {}, {}
    for count in (1, 8):
        folder = tmp_path / str(count)
        mesh = parallel.make_mesh(2 if count > 1 else 1, devices=jax.devices()[:count])
        on_mesh = mock.patch.object(parallel, "make_mesh", return_value=mesh)
        with on_mesh, mock.patch.object(conclusion, "write_report"):
            (finding,) = experiment.run(config, folder).findings
        found[count] = finding.values["curves"]
        with np.load(folder / "saliency.npz") as kept:
            maps[count] = dict(kept)
    for name in ("heads", "attention", "rollout", "grad_cam", "gradient_times_input"):
        one, eight = maps[1][name], maps[8][name]
        assert one.std() > 0
        np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5 * one.max(), err_msg=name)
    np.testing.assert_array_equal(maps[8]["ids"], maps[1]["ids"])
    one, eight = (found[count]["methods"]["Attention"]["trained"] for count in (1, 8))
    assert eight["deletion"]["value"] == pytest.approx(one["deletion"]["value"], abs=1e-5)


def test_a_backbone_without_a_map_of_its_own_needs_a_classifier(
    squares: ExperimentConfig, tmp_path: Path
) -> None:
    config = short_runs.changed(
        squares, {"protocol": "saliency", "backbone.name": "resnet50", "backbone.last_block": -1}
    )
    with pytest.raises(UsageError, match=r"resnet50 has no map of its own .* saliency\.run=FOLDER"):
        experiment.run(config, tmp_path)
    config = dataclasses.replace(squares, judges=("saliency",))
    config = short_runs.changed(config, {"saliency.run": "runs/another"})
    with pytest.raises(UsageError, match=r"expected saliency\.run empty"):
        experiment.run(config, tmp_path)


def test_images_of_every_class_and_kind_are_chosen() -> None:
    logits = np.array([[3.0, 0], [1, 0], [0, 2], [0, 5], [0.1, 0], [0, 0.2], [4, 0]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    found = [(case.row, case.kind, case.words) for case in chosen(logits, labels, "ab", 1)]
    assert found == [
        (0, "correct", "a"),
        (3, "correct", "b"),
        (2, "wrong", "a, said to be b"),
        (6, "wrong", "b, said to be a"),
        (1, "uncertain", "a"),
        (4, "uncertain", "b, said to be a"),
    ]


def test_of_several_labels_what_is_not_known_is_neither_right_nor_wrong() -> None:
    logits = np.array([[3.0, 0], [2, 0], [0, 2], [0, 5]])
    labels = np.array([[1, 0], [np.nan, 1], [1, 0], [0, 1.0]])
    found = [(case.row, case.kind) for case in chosen(logits, labels, "ab", 2)]
    assert found[:3] == [(0, "correct"), (3, "correct"), (2, "wrong")]
    assert {row for row, _ in found} == {0, 2, 3}


def test_agreement_is_that_of_its_definitions() -> None:
    rng = np.random.default_rng(7)
    maps = np.round(rng.uniform(size=(5, 11, 7)), 1)  # with ties
    masks = rng.uniform(size=maps.shape) < 0.2
    maps[4] = 0
    found = agreement(maps, masks)
    # The pixel of 3 is inside, one of the two of 2 is: 1/2 of recall at 1, 1/2 at 2/3.
    (by_hand,) = agreement(
        np.array([[[3, 2], [2, 1]]]), np.array([[[1, 0], [1, 0]]]) == 1
    ).precision
    assert by_hand == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    share = masks[4].mean()
    assert found.pointing[4] == pytest.approx(share)
    assert found.energy[4] == pytest.approx(share)
    best = maps[0] == maps[0].max()
    assert found.pointing[0] == pytest.approx(masks[0][best].mean())
    assert found.energy[0] == pytest.approx(maps[0][masks[0]].sum() / maps[0].sum())
    # A batch of images none of which has anything in its mask.
    assert [len(values) for values in agreement(maps[:0], masks[:0])] == [0, 0, 0]


def test_the_centre_is_where_the_gaussian_is_largest() -> None:
    found = centred(11, 7)
    assert np.unravel_index(found.argmax(), found.shape) == (5, 3)
    np.testing.assert_allclose(found, found[::-1, ::-1])


def test_images_of_one_patient_count_as_one() -> None:
    values = np.array([0.1, 0.5, 0.9])
    alone = standard_error(values, np.arange(3))
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(3))
    assert standard_error(np.repeat(values, 5), np.repeat(np.arange(3), 5)) == pytest.approx(alone)
    assert np.isnan(standard_error(values, np.zeros(3, int)))
