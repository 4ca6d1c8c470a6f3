"""The timing of backbones: what is divided by what, and what is counted."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from fmi_jax.artifacts.result import read_values
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.errors import UsageError
from fmi_jax.protocols import timing
from fmi_jax.report.charts import draw_chart
from fmi_jax.run import experiment
from fmi_jax.settings import DataConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    folder = tmp_path_factory.mktemp("squares")
    runs.draw_squares(folder / "raw", count=31)
    prepare(folder_spec("squares"), folder / "raw", folder / "data", size=16)
    config = ExperimentConfig(protocol="timing", image_size=16)
    config.data = DataConfig(name="squares", data_dir=str(folder / "data"), prepared_size=16)
    config.backbone.name = "deit_nano"
    config.backbone.last_block = 0
    config.timing.reference = "deit_nano"
    config.timing.batch_size = 3
    config.timing.repeats = 3
    return config


def test_a_truncated_backbone_beside_the_whole(config: ExperimentConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, timing=dataclasses.replace(config.timing))
    config.timing.transformer = "deit_nano"
    found = experiment.run(config, tmp_path)
    assert found.to_json() == read_values(tmp_path / "result.json")
    whole, one, *stacked = found.finding.values["rows"]
    assert (whole["backbone"], one["backbone"]) == ("deit_nano", "deit_nano, blocks 0 to 0")
    assert [row["backbone"] for row in stacked] == [
        "deit_nano + deit_nano", "deit_nano, blocks 0 to 0 + deit_nano"
    ]  # fmt: skip
    assert stacked[0]["gflops_per_image"] > 1.8 * whole["gflops_per_image"]
    assert whole["relative_latency"]["low"] == whole["relative_latency"]["high"] == 1
    for row in found.finding.values["rows"]:
        for name in ("latency_ms", "images_per_second", "relative_throughput"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]
        # The first call compiles: far slower than those after it.
        assert 1e3 * row["first_call_seconds"] > 3 * row["latency_ms"]["median"]
        assert row["memory_mib_batch"] > row["memory_mib"] > 4 * row["params"] / 2**20
    # Two more blocks on 5 tokens of width 64: products of qkv, proj, mlp and of attention; so
    # narrow, norms and GELU add a sixth.
    block = 2 * 5 * (4 * 64 * 64 + 2 * 64 * 128) + 2 * 2 * 5 * 5 * 64
    more = 1e9 * (whole["gflops_per_image"] - one["gflops_per_image"])
    assert 2 * block < more < 1.2 * 2 * block
    assert whole["params"] == 122_240 < stacked[0]["params"] < 2 * 122_240 + 64 * 64 + 3 * 64
    assert found.finding.values["machine"]["device"] == "cpu"
    assert found.all_notes == ("Measured on one of 8 devices.",)
    assert (tmp_path / "timing.png").read_bytes().startswith(b"\x89PNG")
    assert "deit_nano, blocks 0 to 0" in (tmp_path / "report.html").read_text()


def test_rounds_take_turns_and_give_a_ratio_each(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def forward(name: str, seconds: list[float]) -> timing.Forward:
        left = iter(seconds)

        def call() -> None:
            calls.append(name)
            now[0] += next(left)

        return timing.Forward(call, 0, 0, 0)

    # The machine is three times slower in the second round: for both.
    own, ratios = timing._in_turn(forward("a", [2, 6, 4]), forward("b", [1, 3, 1]), 3)
    assert calls == ["b", "a", "a", "b", "b", "a"]
    assert own == [2, 6, 4]
    assert ratios == [2, 2, 4]
    assert timing._spread(ratios) == pytest.approx(
        {"median": 2, "mean": 8 / 3, "low": 2, "high": 4}
    )


def test_compile_time_is_not_that_of_reading_a_cache(tmp_path: Path) -> None:
    """What stands in the persistent cache is compiled again, and caching goes on afterwards."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path), 0, -1), strict=True):
        jax.config.update(name, value)
    timing.compilation_cache.reset_cache()
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append("cache_hits" in event))

    def compile() -> bool:
        hits.clear()
        jax.jit(lambda x: jnp.tanh(x) @ x).lower(np.ones((7, 7))).compile()
        return any(hits)

    try:
        assert not compile()
        assert compile()
        with timing._without_cache():
            assert not compile()
        assert compile()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        timing.compilation_cache.reset_cache()


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("timing", {"backbones": ("resnet51",)}, "unknown backbone 'resnet51'"),
        ("timing", {"reference": "deit_bass"}, "unknown backbone 'deit_bass'"),
        ("backbone", {"last_block": 3}, "block 3 does not exist"),
        ("cka", {"batch_size": 8}, "'timing' does not read cka.batch_size"),
    ],
)
def test_what_cannot_be_timed(
    config: ExperimentConfig,
    section: str,
    values: dict[str, object],
    message: str,
    tmp_path: Path,
) -> None:
    asked = dataclasses.replace(getattr(config, section), **values)
    with pytest.raises(UsageError, match=message):
        experiment.run(dataclasses.replace(config, **{section: asked}), tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_the_figure_takes_one_backbone_and_very_different_ones() -> None:
    spread = {"median": 1.0, "low": 0.9, "high": 1.2}
    far = {"median": 80.0, "low": 60.0, "high": 120.0}
    row = {
        "backbone": "a" * 60,
        "relative_latency": spread,
        "latency_ms": spread,
        "relative_throughput": spread,
        "images_per_second": spread,
    }
    for rows in ([row], [row, row | {"relative_latency": far}]):
        drawn = draw_chart(timing._chart(rows, "a" * 60, 3))
        assert drawn.startswith(b"\x89PNG")
