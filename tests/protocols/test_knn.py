"""Nearest neighbours: the study's figures, on any number of devices, in bounded memory."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from compiling import AS_FOR_USERS
from tolerances import SAME_FLOAT32

from fmi_jax import parallel
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import DatasetInfo
from fmi_jax.errors import UsageError
from fmi_jax.protocols import knn
from fmi_jax.protocols.judging import SplitFeatures
from fmi_jax.tasks.classification import Binary, Classification, Multiclass, Multilabel
from fmi_jax.tasks.registry import TASKS, task_of

GOLDEN = Path(__file__).parent.parent / "golden" / "knn" / "io.npz"


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return parallel.make_mesh(devices=jax.devices()[:devices])


def info_of(
    task: type[Classification], classes: tuple[str, ...], train: int, metric: str
) -> DatasetInfo:
    counts = {"train": train, "val": 5, "test": 7}
    return DatasetInfo(
        name="drawn", label=task.label, task=task.name, classes=classes, channels=3, size=8,
        mean=(0.0,), std=(1.0,), metric=metric, split="official", limit=0, split_sha256="",
        counts=counts, class_counts={}, class_groups={}, synthetic=True, manifest_sha256="",
    )  # fmt: skip


def direct(bank, targets, queries, k, temperature):
    """The definition, in float64, one query at a time."""
    bank = bank.astype(float) / np.linalg.norm(bank.astype(float), axis=1, keepdims=True)
    found = []
    for query in queries.astype(float):
        cosine = bank @ (query / np.linalg.norm(query))
        near = np.argsort(-cosine)[:k]
        weights = np.exp(cosine[near] / temperature)
        found.append(weights / weights.sum() @ targets[near])
    return np.array(found)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("case", "k"), [("multiclass", 20), ("multilabel", 20), ("multiclass_k200", 200)]
)
def test_it_gives_the_scores_of_the_study(case: str, k: int, devices: int) -> None:
    with np.load(GOLDEN) as io:
        bank, labels, queries, expected = (
            io[f"{case}/{name}"] for name in ("bank_raw", "bank_labels", "query_raw", "pred_scores")
        )
    targets = labels if labels.ndim == 2 else np.eye(expected.shape[1], dtype=np.float32)[labels]
    (found,) = knn.vote(bank, targets, queries, k=(k,), temperature=(0.1,), mesh=mesh_of(devices))
    np.testing.assert_allclose(found, expected, atol=SAME_FLOAT32, rtol=0)


def test_every_pair_of_k_and_temperature_from_one_search(monkeypatch) -> None:
    """On 8 devices of which none holds `k` images and the last holds fewer, query by query."""
    rng = np.random.default_rng(5)
    bank, queries = rng.normal(size=(61, 13)), rng.normal(size=(7, 13))
    targets = rng.uniform(size=(61, 3))
    monkeypatch.setattr(knn, "CHUNK_BYTES", 3 * (20 * 8 + 4 * 61 * (8 * 5 + 6)))
    calls = []
    search = knn._search
    monkeypatch.setattr(
        knn, "_search", lambda *a, **kw: (calls.append(a[2].shape), search(*a, **kw))[1]
    )
    # At 0.003 exp(cosine / temperature) is beyond float32.
    k, temperature = (61, 1, 11), (0.1, 0.003)
    found = knn.vote(bank, targets, queries, k=k, temperature=temperature, mesh=mesh_of(8))
    assert calls == [(3, 13)]  # compiled once, for three queries at a time
    expected = [direct(bank, targets, queries, n, t) for n in k for t in temperature]
    # float32 cosines over the temperature: 6e-8 / 0.003 relative to a weight.
    np.testing.assert_allclose(found[::2], expected[::2], atol=SAME_FLOAT32, rtol=0)
    np.testing.assert_allclose(found[1::2], expected[1::2], atol=SAME_FLOAT32 * 0.1 / 0.003, rtol=0)


def test_a_device_needs_no_more_memory_than_is_stated() -> None:
    """A bank of 160 000 images on 8 devices, compiled and not run."""
    mesh, rows, f, c, q, k, temperature = mesh_of(8), 20_011, 37, 7, 101, (20, 200), (0.07, 0.1)
    divided, everywhere = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((8 * rows, f), (8 * rows, c), (q, f))]
    search = functools.partial(
        knn._search, count=8 * rows - 3, k=k, temperature=temperature, mesh=mesh
    )
    used = (
        jax.jit(search, in_shardings=(divided, divided, everywhere), out_shardings=everywhere)
        .lower(*shapes)
        .compile(AS_FOR_USERS)
        .memory_analysis()
    )
    assert used.temp_size_in_bytes <= q * (20 * rows + 4 * 200 * (8 * (c + 2) + 4))
    assert used.argument_size_in_bytes == 4 * rows * (f + c) + 4 * q * f


def test_k_above_the_bank_is_refused_with_its_size() -> None:
    config = ExperimentConfig(protocol="knn")
    info = info_of(Multiclass, ("a", "b", "c"), train=137, metric="accuracy")
    config.knn.k = (20, 137)
    knn.SPEC.check(config, info)
    config.knn.k = (20, 138)
    with pytest.raises(UsageError, match=r"138 neighbours in a bank of 137 .* at most 137"):
        knn.SPEC.check(config, info)


def test_the_default_is_a_choice_that_fits_any_bank() -> None:
    """A k above the bank is refused only if somebody asked for it."""
    config = ExperimentConfig(protocol="knn")
    for count, largest in ((13, 10), (137, 100), (5000, 200)):
        found = knn.neighbours(config, count)
        assert (min(found), max(found)) == (1, largest)
        knn.SPEC.check(config, info_of(Multiclass, ("a", "b"), train=count, metric="accuracy"))
    assert len(config.knn.temperature) > 1


def test_a_few_images_of_a_rare_class_are_found_by_default_and_not_by_the_pair_of_the_study():
    """On a small set 200 neighbours are most of the bank, and all images the frequent class."""
    rng = np.random.default_rng(7)
    splits = {}
    for name, count in (("train", 211), ("val", 61), ("test", 67)):
        labels = (np.arange(count) % 9 == 0).astype(np.int32)
        features = 9 + rng.normal(size=(count, 5)) + 6 * np.eye(5)[labels]
        splits[name] = SplitFeatures(
            features=features.astype(np.float32), labels=labels, ids=[*map(str, range(count))]
        )
    info, task = (
        info_of(Binary, ("a", "b"), train=211, metric="balanced_accuracy"),
        Binary(("a", "b")),
    )
    config = ExperimentConfig(protocol="knn")
    chosen = knn.judge(splits, config, info)
    found = task.evaluate(chosen.test)
    assert found.values["balanced_accuracy"] > 0.9
    assert task.warning(found) == ""
    config.knn.k, config.knn.temperature = (200,), (0.1,)
    collapsed = knn.judge(splits, config, info)
    assert not collapsed.notes  # a single pair is no search
    assert task.evaluate(collapsed.test).values["balanced_accuracy"] < 0.6
    config.knn.k = (100, 200)
    (note,) = knn.judge(splits, config, info).notes
    assert note == "The best k, 100, is at an end of the grid: others may be better."


def test_the_best_pair_by_validation_is_reported_beside_all_others() -> None:
    rng = np.random.default_rng(3)
    centers = rng.normal(size=(3, 5))
    splits = {}
    for name, count in (("train", 47), ("val", 31), ("test", 29)):
        labels = np.arange(count, dtype=np.int32) % 3
        features = (centers[labels] + 1.2 * rng.normal(size=(count, 5))).astype(np.float32)
        splits[name] = SplitFeatures(features=features, labels=labels, ids=[*map(str, labels)])
    config = ExperimentConfig(protocol="knn", metric="loss")
    config.knn.k, config.knn.temperature = (1, 5, 47), (0.07, 1.0)
    info = info_of(Multiclass, ("a", "b", "c"), train=47, metric="accuracy")
    judgement = knn.judge(splits, config, info)

    tried = judgement.details["tried"]
    assert [(row["k"], row["temperature"]) for row in tried] == [
        (k, t) for k in config.knn.k for t in config.knn.temperature
    ]
    losses = {}
    for i, row in enumerate(tried):
        scores = direct(
            splits["train"].features, np.eye(3)[splits["train"].labels],
            splits["val"].features, row["k"], row["temperature"],
        )  # fmt: skip
        truth = scores[np.arange(31), splits["val"].labels]
        if (truth == 0).any():  # the loss is infinite there, which is told as undefined
            assert row["val"]["loss"] is None
        else:
            losses[i] = -np.log(truth).mean()
            assert row["val"]["loss"] == pytest.approx(losses[i], abs=1e-5)
    assert losses
    assert len(losses) < len(tried)
    best = tried[min(losses, key=losses.__getitem__)]
    assert judgement.details["chosen"] == {n: best[n] for n in ("k", "temperature")}
    measured = task_of(info).evaluate(judgement.test)
    np.testing.assert_array_equal(judgement.test["labels"], splits["test"].labels)
    assert measured.to_json()["values"] == best["test"]


def test_images_of_several_classes_vote_for_each_of_them() -> None:
    rng = np.random.default_rng(4)
    splits = {
        name: SplitFeatures(
            features=rng.normal(size=(count, 5)).astype(np.float32),
            labels=rng.integers(0, 2, (count, 3)).astype(np.float32),
            ids=[str(i) for i in range(count)],
        )
        for name, count in (("train", 47), ("val", 31), ("test", 29))
    }
    config = ExperimentConfig(protocol="knn")
    config.knn.k = (11,)
    info = info_of(Multilabel, ("a", "b", "c"), train=47, metric="roc_auc")
    judgement = knn.judge(splits, config, info)
    bank = splits["train"]
    expected = direct(bank.features, bank.labels, splits["test"].features, 11, 0.1)
    found = Multilabel().probabilities(judgement.test["logits"])
    np.testing.assert_allclose(found, expected, atol=SAME_FLOAT32, rtol=0)
    assert judgement.details["metric"] == "roc_auc"


def test_probabilities_are_measured_as_they_are() -> None:
    """No second softmax or sigmoid (docs/protocols.md, B11 and B12)."""
    p = np.array([[0.0, 1.0], [0.25, 0.75], [0.6, 0.4], [0.5, 0.5]])
    for task in (task for task in TASKS.values() if issubclass(task, Classification)):
        found = task().probabilities(task().logits(p))
        np.testing.assert_allclose(found, p, atol=1e-15)
    labels = np.array([[0.0, 1], [0, 1], [1, 0], [0, 0]])
    task = Multilabel(("a", "b"))
    assert task.evaluate({"logits": task.logits(p), "labels": labels}).values["f1"] == 1
