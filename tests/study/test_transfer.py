"""The grids of the third study: what they train, from what, beside which numbers."""

import pytest

from fmi_jax.data.registry import DATASETS
from fmi_jax.models.registry import BACKBONES
from fmi_jax.study.grids import transfer, transfer_architectures, transfer_domain, transfer_ssl
from fmi_jax.study.plan import make_plan
from fmi_jax.study.registry import STUDIES
from fmi_jax.tasks.registry import describe
from weights_convert.layouts.registry import LAYOUTS

GRIDS = ("transfer_ssl", "transfer_domain", "transfer_architectures")


@pytest.mark.parametrize("name", GRIDS)
def test_a_cell_is_selected_by_the_loss_and_reported_by_the_published_metric(name: str) -> None:
    plan = make_plan(STUDIES[name])
    assert plan.seeds == 10
    for setting in plan.settings:
        published = setting.published
        if setting.config is None:
            assert setting.at["dataset"] == "rsna_pe" or setting.at["init"] == "imagenet+mimic"
            continue
        data = setting.config.data
        spec = DATASETS[data.name]
        assert setting.at["dataset"] == data.name
        assert data.split in spec.splits
        assert setting.config.train.select_by == "loss"
        metric = setting.config.metric
        assert published is None or published.metric == metric
        assert describe(metric).higher_is_better
        assert metric in (spec.metric, "roc_auc_competition")
    (axis, reference), *_ = plan.study.reference.items()
    assert reference in {setting.at[axis] for setting in plan.settings}


def test_published_numbers_are_printed_or_marked_as_digitised() -> None:
    settings = STUDIES["transfer_ssl"].settings()
    found = {(s.at["init"], s.at["dataset"]): n for s in settings if (n := s.published)}
    assert len(found) == len(settings) == 17 * 7
    printed = found["imagenet", "chexpert_rgb"]
    assert (printed.mean, printed.std, printed.digitised) == (0.871, pytest.approx(0.0036), None)
    swav = found["swav", "chestxray14"]
    assert (swav.mean, swav.std, swav.digitised) == (0.8193, None, 0.0003)
    assert swav.source == "the figure of self-supervised models of arXiv 2108.05930"
    assert found["byol", "rsna_pe"].mean == 0.9562
    assert found["inat2021", "drive"].digitised == 0.001
    table = [s.published for s in STUDIES["transfer_domain"].settings() if s.published]
    assert len(table) == 26
    assert {number.digitised for number in table} == {None}
    figure = STUDIES["transfer_architectures"].settings()
    of = {(s.at["model"], s.at["dataset"]): n.mean for s in figure if (n := s.published)}
    assert len(of) == 12 * 8
    assert of["swin_base", "chexpert_rgb"] == 0.878
    assert of["deit_tiny", "scr_clavicle"] == 0.825


def test_weights_are_published_ones_or_said_to_be_a_file_of_ones_own() -> None:
    sources = {source.tag: source for source in BACKBONES["resnet50"].sources}
    for weights, _ in transfer_ssl.WEIGHTS.values():
        assert (weights in sources) is (weights != "" and weights not in transfer_ssl.OWN_FILES)
        assert weights not in transfer_ssl.OWN_FILES or f"{weights} from" in transfer_ssl.STUDY.note
    layouts = {tag: sources[tag].layout for tag in ("moco_v1", "pcl_v2", "swav", "barlow_twins")}
    assert layouts == {
        **dict.fromkeys(("moco_v1", "pcl_v2"), "resnet_moco"),
        **{"swav": "resnet_swav", "barlow_twins": "resnet"},
    }
    assert {*layouts.values()} <= {*LAYOUTS}
    for model in transfer_architectures.MODELS:
        assert "in1k" in {source.tag for source in BACKBONES[model].sources}


def test_continual_pretraining_is_the_first_run_of_its_own_row_and_runs_before_all_others() -> None:
    plan = make_plan(STUDIES["transfer_domain"])
    of = {(s.at["init"], s.at["dataset"]): s for s in plan.settings}
    after = of["imagenet+chestxray14", "montgomery"]
    (first,) = plan.due([after], {}).values()
    assert first.id == plan.candidates(of["imagenet", "chestxray14"])[0].id
    assert first.config.backbone.weights == "in1k"
    followers = plan.candidates(after)
    assert [cell.seed for cell in followers] == list(range(10))
    assert {cell.config.backbone.run for cell in followers} == {first.id}
    assert not any(cell.config.backbone.weights for cell in followers)
    # Rows of ten runs each; those that pre-train add none of their own.
    assert plan.count(plan.settings) == 10 * (31 - 5)
    assert ("chexpert", "chexpert_rgb") not in of
    images = {DATASETS[s.at["dataset"]].channels for s in plan.settings}
    assert images == {3}, "a backbone goes on to images of as many channels"


def test_the_recipes_are_those_of_the_study() -> None:
    findings = transfer.config(transfer.TASKS["DXC14"], "resnet50", "in1k")
    lungs = transfer.config(transfer.TASKS["LXS"], "resnet50", "in1k")
    vessels = transfer.config(transfer.TASKS["VFS"], "resnet50", "in1k")
    assert findings is not None
    assert lungs is not None
    assert vessels is not None
    optim = findings.optim
    assert (optim.learning_rate, optim.plateau_factor, optim.plateau_patience) == (2e-4, 0.5, 5)
    assert (findings.train.patience, findings.train.batch_size) == (10, 32)
    assert findings.views.name == "ten_crop"
    uncertain = transfer.config(transfer.TASKS["DXC5"], "resnet50", "in1k")
    assert uncertain is not None
    assert (uncertain.loss.soft_labels, findings.loss.soft_labels) == ((0.55, 0.85), (0.0, 0.0))
    augment = lungs.augment
    assert (augment.tone_probability, augment.distort_probability) == (0.3, 0.3)
    assert (augment.zoom_probability, lungs.train.augment_validation) == (0.25, True)
    assert (lungs.optim.schedule, vessels.train.augment_validation) == ("cosine_by_epoch", False)
    assert (lungs.loss.terms, lungs.loss.dice_over, lungs.head) == ("dice", "batch", "unet")
    assert (lungs.optim.learning_rate, lungs.train.epochs, lungs.image_size) == (1e-3, 200, 224)
    assert (vessels.loss.terms, vessels.image_size) == ("cross_entropy", 512)
    assert (vessels.train.batch_size, vessels.augment.tone_probability) == (16, 0.0)
    for config in (findings, lungs, vessels):
        assert (config.optim.weight_decay, config.optim.clip_norm) == (0.0, 0.0)
    assert transfer.config(transfer.TASKS["ECC"], "resnet50", "in1k") is None
    swin = transfer_architectures.config(transfer.TASKS["LXS"], "swin_base", "imagenet", "100%")
    assert (swin.head, swin.optim.weight_decay) == ("upernet", 0.01)
    few = transfer_architectures.config(transfer.TASKS["DXC14"], "swin_base", "scratch", "10%")
    assert (few.data.fraction, few.backbone.weights) == (0.1, "")
    assert transfer_domain.STUDY.seeds == transfer.RUNS
