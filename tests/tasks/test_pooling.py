"""Images of a group pooled into one case, against numbers computed by hand."""

import numpy as np
import pytest

from fmi_jax.tasks.base import Task
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.tasks.logits import Classification

BINARY = Binary(("well", "ill"))
THREE = Multiclass(("a", "b", "c"))
FINDINGS = Multilabel(("x", "y"))

# Probabilities and labels of five images, of the groups "q", "p", "p", "q", "q".
GROUPS = ["q", "p", "p", "q", "q"]
ILL = [0.2, 0.9, 0.1, 0.3, 0.1]
OF_TWO = [[1 - p, p] for p in ILL], [0, 1, 0, 0, 0]
OF_THREE = (
    [[0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.1, 0.6], [0.2, 0.4, 0.4]],
    [2, 1, 1, 2, 2],
)
OF_FINDINGS = (
    [[0.2, 0.5], [0.9, 0.2], [0.1, 0.4], [0.3, 0.5], [0.1, 0.5]],
    [[0, 0], [1, 0], [0, 0], [0, 1], [0, 0]],
)
RULES = {
    # Of two classes the second is stated; p, then q.
    ("binary", "mean"): (BINARY, OF_TWO, [[0.5, 0.5], [0.8, 0.2]], [1, 0]),
    ("binary", "max"): (BINARY, OF_TWO, [[0.1, 0.9], [0.7, 0.3]], [1, 0]),
    ("binary", "noisy_or"): (BINARY, OF_TWO, [[0.09, 0.91], [0.504, 0.496]], [1, 0]),
    ("multiclass", "mean"): (THREE, OF_THREE, [[0.4, 0.4, 0.2], [0.2, 0.2, 0.6]], [1, 2]),
    ("multiclass", "max"): (
        *(THREE, OF_THREE),
        [[6 / 14, 5 / 14, 3 / 14], [3 / 15, 4 / 15, 8 / 15]],
        [1, 2],
    ),
    ("multilabel", "mean"): (FINDINGS, OF_FINDINGS, [[0.5, 0.3], [0.2, 0.5]], [[1, 0], [0, 1]]),
    ("multilabel", "max"): (FINDINGS, OF_FINDINGS, [[0.9, 0.4], [0.3, 0.5]], [[1, 0], [0, 1]]),
    ("multilabel", "noisy_or"): (
        *(FINDINGS, OF_FINDINGS),
        [[0.91, 0.52], [0.496, 0.875]],
        [[1, 0], [0, 1]],
    ),
}


@pytest.mark.parametrize(("kind", "rule"), RULES)
def test_probabilities_and_labels_of_groups(kind: str, rule: str) -> None:
    task, (p, labels), expected, label = RULES[kind, rule]
    assert task.name == kind
    assert rule in task.pools
    measured = {"logits": task.logits(np.array(p)), "labels": np.array(labels)}
    found = task.pooled(measured, GROUPS, rule)
    assert found.names == ["p", "q"]
    assert found.left_out == 0
    np.testing.assert_allclose(task.probabilities(found.measured["logits"]), expected, rtol=1e-12)
    np.testing.assert_array_equal(found.measured["labels"], label)
    assert task.evaluate(found.measured).count == 2


def test_every_rule_of_every_task_is_held() -> None:
    tasks: list[Task] = [BINARY, THREE, FINDINGS]
    assert {*RULES} == {(task.name, rule) for task in tasks for rule in task.pools}


def test_groups_of_several_classes_are_left_out() -> None:
    p, _ = OF_THREE
    measured = {"logits": THREE.logits(np.array(p)), "labels": np.array([2, 1, 0, 2, 2])}
    found = THREE.pooled(measured, GROUPS, "mean")
    assert (found.names, found.left_out) == (["q"], 1)
    np.testing.assert_array_equal(found.measured["labels"], [2])
    none = THREE.pooled(measured, ["a", "a", "b", "b", "b"], "mean")
    assert (none.names, none.left_out) == ([], 2)


@pytest.mark.parametrize(("task", "rule"), [(t, r) for t in (BINARY, FINDINGS) for r in t.pools])
def test_votes_of_0_and_1_pool_to_numbers(task: Classification, rule: str) -> None:
    """As kNN gives them: their logits are infinite."""
    votes = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    labels = np.array([1, 0, 0]) if task is BINARY else votes.astype(int)
    found = task.pooled({"logits": task.logits(votes), "labels": labels}, ["p", "p", "q"], rule)
    [p, q] = task.probabilities(found.measured["logits"])
    pair = {"mean": 0.5, "max": 1.0, "noisy_or": 1.0}[rule]
    assert p[1] == pytest.approx(pair)
    np.testing.assert_allclose(q, [1, 0], atol=1e-15)


@pytest.mark.parametrize("task", [BINARY, FINDINGS])
def test_noisy_or_keeps_sure_groups_apart(task: Classification) -> None:
    """Two groups whose probabilities round to 1, and one whose probability is 1e-20."""
    log_odds = np.array([30.0, 30.0, 30.0, 30.0, 30.0, -46.0])
    logits = np.column_stack([np.zeros(6), log_odds])
    labels = np.zeros(6, int) if task is BINARY else np.zeros((6, 2), int)
    groups = ["two", "two", "three", "three", "three", "weak"]
    found = task.pooled({"logits": logits, "labels": labels}, groups, "noisy_or")
    assert found.names == ["three", "two", "weak"]
    pooled = found.measured["logits"]
    odds = pooled[:, 1] - pooled[:, 0] if task is BINARY else pooled[:, 1]
    np.testing.assert_allclose(odds, [90.0, 60.0, -46.0], rtol=1e-9)
