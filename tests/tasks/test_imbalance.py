"""Losses for classes of unequal frequency: PyTorch's, and what they refuse."""

import numpy as np
import pytest
import torch
from tolerances import SAME_FLOAT32

from fmi_jax.errors import UsageError
from fmi_jax.settings import LossConfig
from fmi_jax.tasks.classification import Binary, Multiclass, Multilabel
from fmi_jax.training import side_by_side

CLASSES = ("a", "b", "c", "d")
COUNTS, TOTAL = np.array([31.0, 7.0, 5.0, 2.0]), 45
RNG = np.random.default_rng(11)
LOGITS = RNG.normal(size=(7, 4), scale=2).astype(np.float32)
LABELS = np.array([0, 1, 3, 0, 2, 1, 3], np.int32)
SEVERAL = RNG.integers(0, 2, (7, 4)).astype(np.float32)


def losses(task, labels, logits=LOGITS, **options):
    objective = task.objective(LossConfig(**options), COUNTS, TOTAL)
    found, _ = objective.loss(logits, {"labels": labels})
    return np.asarray(found)


def close(found, expected):
    np.testing.assert_allclose(found, expected.numpy(), rtol=10 * SAME_FLOAT32, atol=SAME_FLOAT32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_and_smoothing_are_those_of_torch(smoothing, weighted):
    weight = torch.tensor(TOTAL / (4 * COUNTS), dtype=torch.float32) if weighted else None
    found = losses(
        Multiclass(CLASSES),
        LABELS,
        class_weights="balanced" if weighted else "none",
        label_smoothing=smoothing,
        logit_adjustment=0.0 if smoothing or weighted else 1e-30,  # never the plain loss itself
    )
    reference = torch.nn.CrossEntropyLoss(weight, label_smoothing=smoothing, reduction="none")
    close(found, reference(torch.tensor(LOGITS), torch.tensor(LABELS).long()))


def test_balanced_weights_have_the_mean_1_over_the_training_images():
    """So that dividing by images and dividing by weights, as torch does, agree over all."""
    labels = np.repeat(np.arange(4), COUNTS.astype(int)).astype(np.int32)
    logits = RNG.normal(size=(TOTAL, 4)).astype(np.float32)
    found = losses(Multiclass(CLASSES), labels, logits, class_weights="balanced")
    weight = torch.tensor(TOTAL / (4 * COUNTS), dtype=torch.float32)
    reference = torch.nn.CrossEntropyLoss(weight)(torch.tensor(logits), torch.tensor(labels).long())
    assert found.mean() == pytest.approx(float(reference), rel=1e-5)


def test_positives_weigh_as_in_torch():
    found = losses(Multilabel(CLASSES), SEVERAL, class_weights="balanced")
    weight = torch.tensor((TOTAL - COUNTS) / COUNTS, dtype=torch.float32)
    reference = torch.nn.BCEWithLogitsLoss(pos_weight=weight, reduction="none")
    close(found, reference(torch.tensor(LOGITS), torch.tensor(SEVERAL)).mean(dim=1))


def test_focal_loss_is_that_of_its_paper():
    """Written with PyTorch: for a sigmoid, alpha left out, and for a softmax."""
    found = losses(Multilabel(CLASSES), SEVERAL, focal_gamma=2.0)
    logits, truth = torch.tensor(LOGITS), torch.tensor(SEVERAL)
    plain = torch.nn.BCEWithLogitsLoss(reduction="none")(logits, truth)
    right = torch.where(truth == 1, logits.sigmoid(), 1 - logits.sigmoid())
    close(found, (plain * (1 - right) ** 2).mean(dim=1))
    found = losses(Multiclass(CLASSES), LABELS, focal_gamma=1.5)
    log_p = torch.log_softmax(torch.tensor(LOGITS), 1)[torch.arange(7), torch.tensor(LABELS).long()]
    close(found, -((1 - log_p.exp()) ** 1.5) * log_p)


def test_logit_adjustment_adds_the_logarithm_of_the_share_of_each_class():
    found = losses(Multiclass(CLASSES), LABELS, logit_adjustment=1.3)
    adjusted = torch.tensor(LOGITS) + 1.3 * torch.log(torch.tensor(COUNTS / TOTAL)).float()
    reference = torch.nn.CrossEntropyLoss(reduction="none")
    close(found, reference(adjusted, torch.tensor(LABELS).long()))


def test_by_default_the_task_is_its_own_objective_and_heads_have_their_own_losses():
    for task in (Binary(("a", "b")), Multiclass(CLASSES), Multilabel(CLASSES)):
        assert task.objective(LossConfig(), COUNTS, TOTAL) is task
    options = LossConfig(class_weights="balanced", focal_gamma=1.0)
    objective = Multiclass(CLASSES).objective(options, COUNTS, TOTAL)
    both = np.stack([LOGITS, -LOGITS], axis=1)
    together, _ = side_by_side.each(objective.loss)(both, {"labels": LABELS})
    for i in range(2):
        alone, _ = objective.loss(both[:, i], {"labels": LABELS})
        np.testing.assert_allclose(together[:, i], alone, rtol=SAME_FLOAT32)


def test_what_does_not_apply_is_refused_with_the_choice_that_does():
    with pytest.raises(UsageError, match=r"one class each: .* loss\.class_weights='balanced'"):
        Multilabel(CLASSES).objective(LossConfig(logit_adjustment=1.0), COUNTS, TOTAL)
    for options in (LossConfig(class_weights="balanced"), LossConfig(logit_adjustment=1.0)):
        with pytest.raises(UsageError, match="no training image is of class 'd'"):
            Multiclass(CLASSES).objective(options, (3, 2, 1, 0), 6)
    with pytest.raises(UsageError, match=r"loss\.soft_labels=.* labels are one class per image"):
        Multiclass(CLASSES).objective(LossConfig(soft_labels=(0.55, 0.85)), COUNTS, TOTAL)
