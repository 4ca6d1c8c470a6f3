"""Whatever makes results less sure than they look is on everything that shows a result."""

import html
import json
from pathlib import Path

from fmi_jax.config import ExperimentConfig
from fmi_jax.data.card.page import write_card
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.isic2019 import ISIC2019
from fmi_jax.data.remarks import remarks_on
from fmi_jax.run import experiment
from fmi_jax.study.plan import make_plan
from fmi_jax.study.report.write import write_reports
from fmi_jax.study.spec import Setting, Study

LEAK = "of a patient, lesion or study that is also in train: results on test will look too good."


def text_of(path: Path) -> str:
    return html.unescape(path.read_text())


def test_a_leak_is_on_the_card_the_run_and_the_study(tmp_path: Path) -> None:
    ISIC2019.draw(tmp_path / "raw")
    dataset = prepare(ISIC2019, tmp_path / "raw", tmp_path / "data", size=16, split="upstream")
    remarks = remarks_on(dataset)
    assert any(LEAK in remark for remark in remarks)
    write_card(dataset)

    config = ExperimentConfig(protocol="knn", image_size=16)
    config.data.name, config.data.split = "isic2019", "upstream"
    config.data.data_dir, config.data.prepared_size = str(tmp_path / "data"), 16
    config.augment.center_crop = 1.0
    config.backbone.name, config.backbone.last_block = "deit_nano", 0
    config.knn.k = (3,)
    config.train.bootstrap_samples = 7
    study = Study(
        name="lesions",
        title="Lesions",
        settings=lambda: (Setting(at={"dataset": "isic2019", "model": "x"}, config=config),),
        rows=("model",),
    )
    plan, root = make_plan(study), tmp_path / "root"
    root.mkdir()
    plan.write(root)
    [cell] = plan.candidates(plan.settings[0])
    workdir = root / "cells" / cell.id
    experiment.run(cell.config, workdir)
    write_reports(root, (), root / "report")

    result = json.loads((workdir / "result.json").read_text())
    assert [note for note in result["notes"] if note in remarks] == remarks
    assert result["dataset"]["remarks"] == remarks
    groups = {split: len({*(dataset.groups(split) or [])}) for split in dataset.info.counts}
    assert result["dataset"]["group_counts"] == groups != dataset.info.counts
    page, report = text_of(workdir / "report.html"), text_of(root / "report" / "report.html")
    for remark in remarks:
        assert remark in text_of(dataset.folder / "card.html")
        assert remark in page
        assert report.count(remark) == 1
    assert "The data name no patients" not in " ".join(page.split())
    assert f"of {groups['test']} patients or lesions (train {groups['train']}," in page
    assert "Worth knowing about isic2019 (upstream)." in report
    assert f"{dataset.info.counts['test']} test (of {groups['test']} patients" in report
    assert LEAK in (root / "report" / "report.md").read_text()
