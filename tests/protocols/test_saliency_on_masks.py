"""The judge of saliency on a data set of masks: maps beside what knows nothing."""

from pathlib import Path

import numpy as np
import short_runs


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
