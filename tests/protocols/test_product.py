"""A protocol is an adaptation times a head, and judges: what is written down, added and refused."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import short_runs

from fmi_jax.artifacts.result import Result
from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.protocols.registry import PAIRS, PROTOCOLS, check_read, protocol_of, resolved
from fmi_jax.run import experiment
from fmi_jax.study.cells import cell_id


def config(**fields: object) -> ExperimentConfig:
    return dataclasses.replace(ExperimentConfig(), **fields)


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_with_a_name_is_written_under_it(name: str) -> None:
    adapt, head = PAIRS[name]
    plain = config(protocol=name)
    for other in (
        config(protocol="fit", adapt=adapt, head=head),
        config(protocol=name, adapt=adapt),
        config(protocol=name, head=head),
        config(protocol=name, adapt=adapt, head=head),
    ):
        assert resolved(other) == plain
        assert cell_id(resolved(other)) == cell_id(plain)
        assert protocol_of(other) is PROTOCOLS[name]


def test_a_pair_without_a_name_reads_what_its_parts_read() -> None:
    free = config(protocol="fit", adapt="partial", head="attentive")
    assert resolved(free) == free
    free.attentive.num_heads, free.backbone.frozen_blocks, free.optim.layer_decay = 3, 2, 0.5
    check_read(free)
    free.lora.rank = 3
    with pytest.raises(UsageError, match=r"adapt=partial, head=attentive\) does not read lora"):
        check_read(free)
    judged = dataclasses.replace(free, judges=("knn",))
    judged.lora.rank, judged.knn.k = config().lora.rank, (3,)
    check_read(judged)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"protocol": "linear_probe", "adapt": "full"},
            "adapt='full' contradicts protocol 'linear_probe', which is adapt=frozen with"
            " head=linear: expected protocol='finetune', or adapt empty.",
        ),
        (
            {"protocol": "partial", "head": "attentive"},
            "head='attentive' contradicts protocol 'partial', which is adapt=partial with"
            " head=linear: expected protocol='fit' with adapt=partial and head=attentive, or head"
            " empty.",
        ),
        (
            {"protocol": "finetune", "adapt": "lora", "head": "deit"},
            "adapt='lora' and head='deit' contradict protocol 'finetune', which is adapt=full with"
            " head=linear: expected protocol='fit' with adapt=lora and head=deit, or adapt and head"
            " empty.",
        ),
        ({"protocol": "fit", "adapt": "full"}, "protocol 'fit' needs head: expected adapt of "),
        ({"protocol": "fit"}, "protocol 'fit' needs adapt and head: "),
        (
            {"protocol": "fit", "adapt": "full", "head": "grid"},
            "head='grid' stands on features that do not change: expected adapt=frozen, got 'full'.",
        ),
        (
            {"protocol": "knn", "adapt": "full"},
            "adapt='full': protocol 'knn' trains no adapt x head; leave adapt empty.",
        ),
        ({"protocol": "fit", "adapt": "ful", "head": "linear"}, "unknown adapt 'ful'"),
        ({"protocol": "linear_probe", "head": "linera"}, "unknown head 'linera'"),
        ({"protocol": "finetun"}, "unknown protocol 'finetun'. Did you mean 'finetune'"),
        ({"judges": ("knm",)}, "unknown judge 'knm'"),
        ({"judges": ("knn", "knn")}, "'knn' judges already"),
        ({"protocol": "cka", "judges": ("cka",)}, "'cka' judges already"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        resolved(config(**fields))
    assert message in str(refusal.value)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    made = short_runs.prepare_squares(tmp_path_factory.mktemp("squares"))
    made.backbone.last_block = 1
    made.protocol = "finetune"
    return made


def test_judges_are_added_to_the_network_that_was_trained(
    squares: ExperimentConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    both = dataclasses.replace(copy.deepcopy(squares), judges=("knn", "cka"))
    both.knn.k, both.cka.batch_size = (5,), 8
    result = experiment.run(both, tmp_path / "both")
    said = capsys.readouterr().out
    for line in (
        "Test set, 9 images",
        "K nearest neighbours of frozen features: test set",
        "CKA of ",
    ):
        assert line in said
    assert [finding.judge for finding in result.findings] == ["finetune", "knn", "cka"]
    read = Result.read(tmp_path / "both")
    assert read.test.values == result.test.values
    assert (read.adapt, read.head) == ("full", "linear")

    # A judge finds what it finds in a run of its own, which reads the features kept by this one.
    after = dataclasses.replace(copy.deepcopy(both), protocol="knn", judges=())
    after.optim, after.cka = ExperimentConfig().optim, ExperimentConfig().cka
    after.backbone.run = str(tmp_path / "both")
    capsys.readouterr()
    knn = experiment.run(after, tmp_path / "knn")
    assert "computing" not in capsys.readouterr().out
    assert knn.test.values == result.findings[1].evaluations["test"].values
    predictions = (tmp_path / "knn" / "predictions.csv").read_bytes()
    assert (tmp_path / "both" / "knn_predictions.csv").read_bytes() == predictions
    assert (tmp_path / "both" / "predictions.csv").read_bytes() != predictions

    # CKA compares the trained network with the one that the run began with.
    (pair,) = result.findings[2].values["pairs"]
    values = np.array(pair["cka"], float)
    assert values[-1, -1] < 0.999
    page = (tmp_path / "both" / "report.html").read_text()
    for words in ("K nearest neighbours", "CKA"):
        assert words in page
    saved = json.loads((tmp_path / "both" / "result.json").read_text())
    assert saved["config"]["judges"] == ["knn", "cka"]
