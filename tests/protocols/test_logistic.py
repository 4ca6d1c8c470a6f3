"""Logistic regression: that of scikit-learn, for a whole grid of penalties at once."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from test_knn import info_of, mesh_of
from tolerances import LOGISTIC

from fmi_jax.config import ExperimentConfig
from fmi_jax.protocols import logistic
from fmi_jax.protocols.judging import SplitFeatures
from fmi_jax.tasks.classification import Binary, Classification, Multiclass, Multilabel

C = (1e-3, 1.0, 100.0)


def draw(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that overlap; features of all scales, far from zero, one of them constant."""
    rng = np.random.default_rng(7)
    centers, scale, offset = rng.normal(size=(3, 11)), rng.uniform(0.1, 30, 11), rng.normal(size=11)
    scale[4] = 0
    rng = np.random.default_rng([seed, count])
    labels = rng.permutation(np.arange(count) % 3).astype(np.int32)
    features = centers[labels] + 1.5 * rng.normal(size=(count, 11))
    return (features * scale + 50 * offset).astype(np.float32), labels


@pytest.mark.parametrize(
    ("task", "devices"),
    [(Multiclass, 1), (Multiclass, 8), (Binary, 8), (Multilabel, 8)],
)
def test_it_is_that_of_scikit_learn(task: type[Classification], devices: int) -> None:
    """97 images: the last of 8 devices has fewer than the others."""
    features, labels = draw(97)
    if task is not Multiclass:
        labels = (labels == 2).astype(np.int32)
    if task is Multilabel:
        labels = np.stack([labels, features[:, 0] > np.median(features[:, 0]), 1 - labels], 1)
    found = logistic.fit(
        features, labels, num_classes=2 if task is Binary else 3, c=C,
        max_iterations=1000, mesh=mesh_of(devices),
    )  # fmt: skip
    assert found.converged.all()
    spread = features.std(axis=0, dtype=float)
    inputs = (features - features.mean(axis=0, dtype=float)) / np.where(spread > 0, spread, 1)
    others, _ = draw(89, seed=1)
    new = (others - features.mean(axis=0, dtype=float)) / np.where(spread > 0, spread, 1)
    for c, logits in zip(C, found.logits(others), strict=True):
        reference = LogisticRegression(C=c, tol=1e-8, max_iter=10_000)
        if task is Multilabel:
            columns = [reference.fit(inputs, y).predict_proba(new)[:, 1] for y in labels.T]
            expected = np.stack(columns, axis=1)
        else:
            expected = reference.fit(inputs, labels).predict_proba(new)
        np.testing.assert_allclose(task().probabilities(logits), expected, atol=LOGISTIC, rtol=0)


def test_the_best_penalty_by_validation_is_reported_and_what_is_wrong_with_it() -> None:
    splits = {
        name: SplitFeatures(features=features, labels=labels, ids=[*map(str, labels)])
        for name, (features, labels) in {n: draw(c) for n, c in
                                         (("train", 97), ("val", 41), ("test", 43))}.items()
    }  # fmt: skip
    config = ExperimentConfig(protocol="logistic", metric="loss")
    config.logistic.c, config.logistic.max_iterations = C, 2
    info = info_of(Multiclass, ("a", "b", "c"), train=97, metric="accuracy")
    judgement = logistic.judge(splits, config, info)
    tried = judgement.details["tried"]
    best = min(tried, key=lambda row: row["val"]["loss"])
    assert judgement.details["chosen"] == {n: best[n] for n in ("c", "iterations", "converged")}
    assert best["iterations"] == 2
    assert not best["converged"]
    assert "had not converged" in judgement.notes[0]
    assert any("end of the grid" in note for note in judgement.notes) == (best["c"] in C[::2])
    on_val = Multiclass().probabilities(judgement.val["logits"])
    np.testing.assert_allclose(on_val.sum(axis=1), 1)
    assert np.log(on_val[np.arange(41), splits["val"].labels]).mean() == pytest.approx(
        -best["val"]["loss"]
    )
