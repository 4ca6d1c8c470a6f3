"""Rules at the config's fields: which values are refused, in which words."""

import contextlib
import copy
import dataclasses
import math
import operator
import pickle
import re

import pytest

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.fields import field_names, set_fields
from fmi_jax.flags import assign
from fmi_jax.rules import validate

_TEXT = (
    "expected text without control characters, below 256 bytes (a path: between slashes, and below"
    " 4096 in all)"
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size=0: expected more than 0"),
        ({"image_size": 2**16}, "image_size=65536: expected at most 16384"),
        ({"data.prepared_size": 2**20}, "data.prepared_size=1048576: expected at most 65536"),
        ({"optim.clip_norm": -0.5}, "optim.clip_norm=-0.5: expected 0 or more"),
        ({"optim.clip_norm": float("nan")}, "optim.clip_norm=nan: expected 0 or more"),
        (
            {"optim.learning_rate": float("inf")},
            "optim.learning_rate=inf: expected a finite number",
        ),
        (
            {"optim.learning_rate": 1e300},
            "optim.learning_rate=1e+300: expected at most 3.4e+38",
        ),
        ({"augment.brightness": float("inf")}, "augment.brightness=inf: expected a finite number"),
        (
            {"optim.plateau_factor": -1.0},
            "optim.plateau_factor=-1.0: expected more than 0, at most 1",
        ),
        ({"train.seed": -1}, "train.seed=-1: expected 0 or more"),
        ({"train.seed": 2**32}, "train.seed=4294967296: expected at most 4294967295"),
        ({"train.epochs": 1e20}, "train.epochs=1e+20: expected at most 1000000.0"),
        ({"train.epochs": 10**400}, f"train.epochs=1{'0' * 299}...: expected float, such as 100.0"),
        (
            {"optim.warmup_steps": 2**31},
            "optim.warmup_steps=2147483648: expected at most 2147483647",
        ),
        (
            {"train.eval_batch_size": 10**20},
            f"train.eval_batch_size={10**20}: expected at most 4294967295",
        ),
        ({"data.threads": 10**9}, "data.threads=1000000000: expected at most 1024"),
        ({"backbone.last_block": -2}, "backbone.last_block=-2: expected -1 or more"),
        (
            {"augment.affine_translate": ()},
            "augment.affine_translate=(): expected 2 values of float, such as (0.1, 0.3)",
        ),
        (
            {"knn.k": tuple(range(1, 1002))},
            f"knn.k={str(tuple(range(1, 1002)))[:300]}...: expected at most 1000 values",
        ),
        ({"judges": ("a\0",)}, f"judges=('a\\x00',): {_TEXT}"),
        ({"data.data_dir": "d" * 5000}, f"data.data_dir='{'d' * 299}...: {_TEXT}"),
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


_HOSTILE = (
    *(None, True, "", "abc", "x" * 5000, "a\0b", "\udce9", "/" * 5000, b"x", {}, object()),
    *(0, -1, 1, 2**31, 2**63, 10**20, 10**400, 0.5, -0.5, 1e20, -1e300, 1e300),
    *(math.nan, math.inf, -math.inf, (), [], (0.5,), (1, 2, 3), ("a",), ((1,),), (math.nan,) * 2),
    *((math.inf, math.inf), (0, 0), ("a" * 300,), tuple(range(1, 2000))),
)


def test_no_value_of_any_field_gives_anything_but_a_message() -> None:
    for name in field_names(ExperimentConfig):
        for value in _HOSTILE:
            config = ExperimentConfig()
            set_fields(config, {name: value})
            try:
                validate(config)
            except UsageError:
                continue
            accepted = operator.attrgetter(name)(config)
            for each in accepted if isinstance(accepted, tuple) else [accepted]:
                assert not isinstance(each, float) or math.isfinite(each), (name, value)
                assert not isinstance(each, str) or (each.isprintable() and len(each) < 256)
                assert not isinstance(each, int) or each < 2**32, (name, value)


@pytest.mark.parametrize("name", ["train.seed", "train.epochs", "knn.k", "augment.crop_scale"])
@pytest.mark.parametrize("text", ["abc", "1e20", "nan", "()", "[1", "'", "{}", "1" * 5000, "-1"])
def test_no_text_of_a_field_gives_anything_but_a_message(name: str, text: str) -> None:
    config = ExperimentConfig()
    with contextlib.suppress(UsageError):
        assign(config, name, text)
        validate(config)
