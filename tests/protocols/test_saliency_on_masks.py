"""The judge of saliency beside masks and boxes: maps beside what knows nothing."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import short_runs
from PIL import Image

from fmi_jax.data.masks import masked_rows
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.chestxray14 import CHESTXRAY14, read_boxes
from fmi_jax.report.charts import TRUE_COLOUR, draw_chart


def test_a_classifier_beside_masks_of_other_images(
    tmp_path: Path,
) -> None:
    squares = short_runs.prepare_squares(tmp_path)
    short_runs.prepare_masked(Path(squares.data.data_dir))
    short_runs.run(squares, tmp_path / "trained")
    config = short_runs.changed(
        squares,
        {
            "protocol": "saliency",
            "saliency.run": str(tmp_path / "trained"),
            "data.name": "masked",
        },
    )
    (finding,) = short_runs.run(config, tmp_path / "looks").findings
    found = finding.values["agreement"]
    assert list(found["methods"]) == ["Attention", "Rollout", "Grad-CAM", "Gradient x input"]
    for row in found["methods"].values():
        assert 0 < row["trained"]["precision"]["value"] < 1
        assert row["trained"]["energy"] != row["random weights"]["energy"]
        low, high = row["ahead_of"]["the centre of the image"]
        assert low < high
        mean = (
            row["trained"]["precision"]["value"] - found["Centred Gaussian"]["precision"]["value"]
        )
        np.testing.assert_allclose((low + high) / 2, mean)
    noted = {title for title in found["methods"] if any(title in note for note in finding.notes)}
    lost = {
        title
        for title, row in found["methods"].items()
        if any(low <= 0 for low, _ in row["ahead_of"].values())
    }
    assert noted == lost
    assert "Centred Gaussian" in finding.text
    assert {case["kind"] for case in finding.values["cases"]} == {"image"}
    assert all("outline of the mask" in caption for caption in finding.figures.values())


def test_a_classifier_of_images_some_of_which_have_boxes(tmp_path: Path) -> None:
    squares = short_runs.prepare_squares(tmp_path)
    assert CHESTXRAY14.draw is not None
    CHESTXRAY14.draw(tmp_path / "chest")
    spec = dataclasses.replace(CHESTXRAY14, read=read_boxes)
    dataset = prepare(spec, tmp_path / "chest", Path(squares.data.data_dir), size=16)
    config = short_runs.changed(
        dataclasses.replace(squares, judges=("saliency",), metric=""),
        {"data.name": "chestxray14", "saliency.batch_size": 5},
    )
    _, finding = short_runs.run(config, tmp_path / "run").findings
    count, rows = dataset.info.counts["test"], masked_rows(dataset, "test")
    assert 0 < len(rows) < count
    assert finding.values["agreement"]["images"] == len(rows)
    assert finding.notes[0].startswith(f"{len(rows)} of the {count} test images have a mask")
    with np.load(tmp_path / "run" / "saliency.npz") as kept:
        ids, masks = kept["ids"].tolist(), kept["masks"]
    boxed = {dataset.ids("test")[row] for row in rows}
    assert [mask.any() for mask in masks] == [name in boxed for name in ids]
    name = next(name for name in finding.charts if "correct" in name or "wrong" in name)
    overlays = finding.charts[name]
    outlined = Image.open(io.BytesIO(draw_chart(overlays))).convert("RGB")
    plain = draw_chart(dataclasses.replace(overlays, masks=None))
    assert cyan(outlined) > cyan(Image.open(io.BytesIO(plain)).convert("RGB"))


def cyan(image: Image.Image) -> int:
    """Number of pixels in the colour of outlines of masks."""
    pixels = np.asarray(image, np.int32)
    return int((np.abs(pixels - TRUE_COLOUR).max(axis=-1) < 30).sum())
