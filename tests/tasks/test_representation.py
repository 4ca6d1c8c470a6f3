"""Measures of features, held to values that are known by other means."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from fmi_jax.tasks.representation import (
    effective_dimensions,
    neighbour_votes,
    similarity,
    spread_of,
)

RNG = np.random.default_rng(3)
N, F, C = 37, 11, 3


def orthogonal(rows: int, columns: int) -> np.ndarray:
    """Centred orthonormal columns."""
    x = RNG.normal(size=(rows, columns))
    return np.linalg.qr(x - x.mean(0))[0]


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_equal_singular_values_count_as_that_many_dimensions(rank: int) -> None:
    features = orthogonal(N, rank) @ np.linalg.qr(RNG.normal(size=(F, rank)))[0].T
    assert effective_dimensions(features + 5.0) == pytest.approx(rank, rel=1e-9)
    assert effective_dimensions(100 * features) == pytest.approx(rank, rel=1e-9)


def test_unequal_singular_values_count_by_the_entropy_of_their_shares() -> None:
    features = orthogonal(N, 2) * np.array([3.0, 1.0])
    assert effective_dimensions(features) == pytest.approx(4 / 3**0.75, rel=1e-9)


def test_features_that_are_all_the_same_have_no_dimension_and_no_spread() -> None:
    same = np.repeat(RNG.normal(size=(1, F)), N, 0).astype(np.float32)
    assert effective_dimensions(same) == 0
    assert spread_of(same) == pytest.approx(0, abs=1e-7)
    opposite = np.array([[1.0, 0.0], [-2.0, 0.0]])
    assert spread_of(opposite) == pytest.approx(1)  # as far apart as unit vectors can be


def test_similarity_sees_no_common_offset_but_another_image() -> None:
    features = RNG.normal(size=(N, F))
    assert similarity(features, features + 3.0) == pytest.approx(1)
    assert similarity(features, -features) == pytest.approx(-1)
    assert abs(similarity(features, features[::-1])) < 0.3


def test_votes_are_those_of_scikit_learn_on_the_other_images() -> None:
    features, labels = RNG.normal(size=(N, F)), RNG.integers(0, C, N)
    found = neighbour_votes(features, np.eye(C)[labels], None, k=5, temperature=0.2)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for i in range(N):
        others = np.arange(N) != i
        judge = KNeighborsClassifier(5, weights=lambda d: np.exp((1 - d) / 0.2), metric="cosine")
        judge.fit(unit[others], labels[others])
        expected = np.zeros(C)
        expected[judge.classes_] = judge.predict_proba(unit[i : i + 1])[0]
        np.testing.assert_allclose(found[i], expected, atol=1e-12)


def test_no_image_of_the_same_patient_votes() -> None:
    """Two images of each patient are alike, and the label is the patient's alone."""
    patients = np.repeat(np.arange(N), 2)
    features = RNG.normal(size=(N, F))[patients] + 1e-3 * RNG.normal(size=(2 * N, F))
    membership = np.eye(N)[patients]
    groups = [f"p{i}" for i in patients]
    alone = neighbour_votes(features, membership, None, k=1, temperature=0.1)
    apart = neighbour_votes(features, membership, groups, k=1, temperature=0.1)
    assert (alone.argmax(1) == patients).all()
    assert not apart[np.arange(2 * N), patients].any()


def test_votes_that_all_agree_are_probabilities_in_any_number_of_rows() -> None:
    """Of shares that add up to 1, rounding makes more; log-odds of more than 1 are not numbers."""
    features = RNG.normal(size=(1100, F))
    votes = neighbour_votes(features, np.ones((1100, 2)), None, k=20, temperature=0.07)
    assert votes.max() <= 1
    np.testing.assert_allclose(votes, 1)
    one, other = features[:600], np.eye(2)[RNG.integers(0, 2, 600)]
    together = neighbour_votes(one, other, None, k=3, temperature=0.1)
    bank = one / np.linalg.norm(one, axis=1, keepdims=True)
    cosine = bank[599] @ bank.T
    cosine[599] = -np.inf
    best = np.argsort(-cosine)[:3]
    weights = np.exp(cosine[best] / 0.1)
    np.testing.assert_allclose(together[599], weights @ other[best] / weights.sum(), atol=1e-12)
