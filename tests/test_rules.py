"""Rules at the config's fields: which values are refused, in which words."""

import copy
import dataclasses
import pickle
import re

import pytest

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.fields import set_fields
from fmi_jax.rules import validate


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size=0: expected more than 0"),
        ({"optim.clip_norm": -0.5}, "optim.clip_norm=-0.5: expected 0 or more"),
        ({"optim.clip_norm": float("nan")}, "optim.clip_norm=nan: expected 0 or more"),
        ({"augment.hue": 0.7}, "augment.hue=0.7: expected at most 0.5"),
        ({"data.fraction": 0.0}, "data.fraction=0.0: expected more than 0, at most 1"),
        ({"knn.k": (5, 5)}, "knn.k=(5, 5): expected one or more different numbers above 0"),
        ({"knn.k": ()}, "knn.k=(): expected one or more different numbers above 0"),
        ({"lora.targets": ("q", "w")}, "lora.targets=('q', 'w'): expected some of q, v, proj, mlp"),
        ({"cka.split": "all"}, "cka.split='all': expected one of train, val, test"),
        (
            {"data.fraction": 0.5, "data.shots": 7},
            "data.fraction and data.shots are both set: expected at most one",
        ),
        (
            {"optim.warmup_steps": 3, "optim.warmup_epochs": 1.0},
            "optim.warmup_steps and optim.warmup_epochs are both set: expected at most one",
        ),
        (
            {"backbone.run": "a", "backbone.weights": "b"},
            "backbone.run='a' and backbone.weights='b' are both set: expected one of them"
            " (--config.backbone.weights= empties it)",
        ),
    ],
)
def test_a_wrong_value_is_refused_once(values: dict[str, object], message: str) -> None:
    config = ExperimentConfig()
    set_fields(config, values)
    with pytest.raises(UsageError, match=f"^config: {re.escape(message)}\\.$"):
        validate(config)


def test_all_wrong_values_are_in_one_message() -> None:
    config = ExperimentConfig()
    wrong = {"image_size": -3, "augment.erase_area": (0.0, 2.0), "backbone.dtype": "float16"}
    set_fields(config, wrong)
    with pytest.raises(UsageError) as refused:
        validate(config)
    assert [refused.value.args[0].count(f"{name}=") for name in wrong] == [1, 1, 1]


def test_a_config_is_copied_whole() -> None:
    config = ExperimentConfig()
    config.optim.learning_rate = 3e-3
    same = (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), dataclasses.replace(config))
    assert all(other == config for other in same)
    validate(config)
    with pytest.raises(AttributeError):
        config.optim.learing_rate = 1.0  # type: ignore[attr-defined]
