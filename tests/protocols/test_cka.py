"""CKA against its definition in float64, and as an analysis of networks."""

import copy
import csv
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import tiny_backbones
import tolerances
from flax import nnx
from hypothesis import given, settings, strategies as st
from jax.sharding import Mesh

from fmi_jax import parallel
from fmi_jax.artifacts.charts import Matrix
from fmi_jax.artifacts.result import read_values
from fmi_jax.config import ExperimentConfig
from fmi_jax.data.prepared import PreparedDataset, open_or_draw
from fmi_jax.data.preparing.prepare import prepare
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.errors import UsageError, UserError
from fmi_jax.models.base import Backbone, Execution, create, create_abstract
from fmi_jax.models.deit import TokenDeiT
from fmi_jax.protocols import cka as protocol, hsic
from fmi_jax.protocols.cka import CkaConfig
from fmi_jax.protocols.heads.stacked import StackedClassifier
from fmi_jax.protocols.judging import Network
from fmi_jax.report.charts import draw_chart
from fmi_jax.run import experiment, network
from fmi_jax.settings import DataConfig


def pairs_of_images(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased HSIC as a sum over ordered quadruples of different images (Song et al.)."""
    kx, ky, n = x @ x.T, y @ y.T, len(x)
    total = 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += kx[i, j] * (ky[i, j] + ky[q, r] - 2 * ky[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def direct(features: list[np.ndarray], groups: list[np.ndarray], *, mean: bool) -> np.ndarray:
    """CKA by the closed form of Song et al., equation 5, batch by batch, in float64."""

    def unbiased(x: np.ndarray, y: np.ndarray) -> float:
        kx, ky, n = x @ x.T, y @ y.T, len(x)
        kx, ky, one = kx - np.diag(kx.diagonal()), ky - np.diag(ky.diagonal()), np.ones(n)
        sums = (one @ kx @ one) * (one @ ky @ one) / ((n - 1) * (n - 2))
        return (np.trace(kx @ ky) + sums - 2 / (n - 2) * one @ kx @ ky @ one) / (n * (n - 3))

    def ratio(h: np.ndarray) -> np.ndarray:
        return h / np.sqrt(np.outer(h.diagonal(), h.diagonal()))

    features = [x.astype(np.float64) for x in features]
    batches = [
        np.array([[unbiased(x[rows], y[rows]) for y in features] for x in features])
        for rows in groups
    ]
    if mean:
        return np.mean([ratio(h) for h in batches], axis=0)
    return ratio(sum(len(rows) * h for rows, h in zip(groups, batches, strict=True)))


def drawn(n: int, widths: tuple[int, ...] = (7, 13, 29), seed: int = 0) -> list[np.ndarray]:
    """Features of `n` images that have something in common, and an offset."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 5))
    return [
        (common @ rng.normal(size=(5, f)) + rng.normal(size=(n, f)) + 3).astype(np.float32)
        for f in widths
    ]


def grams(features: list[np.ndarray], rows: np.ndarray, padding: int = 0) -> np.ndarray:
    mask = jnp.r_[jnp.ones(len(rows)), jnp.zeros(padding)]
    padded = [np.r_[x[rows], np.full((padding, x.shape[1]), 9, np.float32)] for x in features]
    found = np.stack([hsic.gram(jnp.asarray(x), mask) for x in padded])
    assert not found[:, len(rows) :].any()
    return found[:, : len(rows), : len(rows)]


def test_hsic_is_the_sum_over_quadruples_of_images() -> None:
    x, y, _ = [x.astype(np.float64) for x in drawn(7)]
    found = hsic.hsic(np.stack([x @ x.T, y @ y.T]))
    expected = [[pairs_of_images(a, b) for b in (x, y)] for a in (x, y)]
    np.testing.assert_allclose(found, expected, rtol=tolerances.METRIC * 100)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(("n", "batch_size"), [(61, 16), (61, 61), (29, 8)])
def test_batches_that_do_not_divide_the_images(n: int, batch_size: int, padding: int) -> None:
    features, groups = drawn(n), hsic.even_batches(n, batch_size, seed=3)
    assert sorted(np.concatenate(groups)) == list(range(n))
    assert max(map(len, groups)) <= batch_size
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    for estimate, mean in ((hsic.summed, False), (hsic.averaged, True)):
        found = estimate(grams(features, rows, padding) for rows in groups)
        expected = direct(features, groups, mean=mean)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerances.CKA)


@pytest.mark.parametrize("n", [11, 61])  # wider than many, and narrower
def test_exact_is_one_batch_of_all_images(n: int) -> None:
    features = drawn(n)
    expected = direct(features, [np.arange(n)], mean=False)
    np.testing.assert_allclose(hsic.exact(features), expected, rtol=0, atol=tolerances.CKA)


def test_summed_batches_come_near_the_exact_value_and_the_biased_estimate_does_not() -> None:
    """Independent wide features: unbiased about 0, where the biased CKA of a batch is about 1."""
    rng = np.random.default_rng(5)
    features = [rng.normal(size=(509, 307)).astype(np.float32) for _ in range(2)]
    batches = [grams(features, rows) for rows in hsic.even_batches(509, 16, seed=0)]
    assert abs(hsic.summed(batches)[0, 1]) < 0.02
    assert abs(hsic.exact(features)[0, 1]) < 0.02
    x, y = (x[:16] - x[:16].mean(0) for x in features)
    biased = np.square(y.T @ x).sum() / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert biased > 0.9


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(4, 37),
    seed=st.integers(0, 1000),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10),
)
def test_rotation_scale_and_shift_change_nothing(
    n: int, seed: int, scale: float, shift: float
) -> None:
    x, y, _ = [x.astype(np.float64) for x in drawn(n, seed=seed)]
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(7, 7)))
    found = hsic.exact([x, y, scale * x @ rotation + shift])
    # The third is the first in other coordinates.
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=tolerances.CKA)
    np.testing.assert_allclose(found.diagonal(), 1, atol=tolerances.CKA)


def test_an_invertible_map_that_is_no_rotation_changes_it() -> None:
    x, *_ = drawn(61)
    stretched = x * np.array([1, 1, 1, 1, 1, 1, 30], np.float32)
    assert hsic.exact([x, stretched])[0, 1] < 0.95


def test_a_layer_that_is_the_same_for_all_images_has_no_similarity() -> None:
    x, *_ = drawn(11)
    found = hsic.summed([grams([x, np.ones((11, 3), np.float32)], np.arange(11))])
    assert np.isnan(found[0, 1])
    assert np.isnan(found[1, 1])
    assert found[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("family", tiny_backbones.TINY)
def test_layers_of_every_family(family: str) -> None:
    tiny = tiny_backbones.TINY[family]
    backbone = create_abstract(tiny.family, tiny.arch, Execution())
    images = jax.ShapeDtypeStruct((2, tiny.side, tiny.side, tiny.arch.in_channels), jnp.float32)
    blocks = [f"block {i}" for i in range(tiny.arch.num_blocks)]
    each = range(tiny.arch.num_blocks)
    expected = nnx.eval_shape(lambda net, x: net.features_at(x, each), backbone, images)

    def shapes(kind: str) -> dict[str, tuple[int, ...]]:
        names = []

        def trace(net: Backbone, x: jax.Array) -> list[jax.Array]:
            found = protocol.layers(SimpleNamespace(backbone=net), x, kind)
            names.extend(found)
            return list(found.values())

        found = nnx.eval_shape(trace, backbone, images)
        return {name: shape.shape for name, shape in zip(names, found, strict=True)}

    for kind in ("all", "patches"):
        assert list(shapes(kind)) == ["embedding", *blocks]
    assert list(shapes("pooled").values()) == [features.pooled.shape for features in expected]
    for found, features in zip([*shapes("patches").values()][1:], expected, strict=True):
        # A stage that halves the grid does so after its output or before its readout.
        assert math.prod(found) in {features.tokens.size, features.tokens.size // 2, 2}
    if expected[0].cls is None:
        with pytest.raises(UsageError, match=r"without a \[cls\] token"):
            shapes("cls")
    else:
        assert list(shapes("cls")) == blocks
        assert set(shapes("cls").values()) == {(2, tiny.arch.token_width)}


def test_layers_are_what_the_network_computes() -> None:
    tiny = tiny_backbones.TINY["dinov2_reg"]
    backbone = tiny_backbones.fill(create_abstract(tiny.family, tiny.arch, Execution()))
    images = np.random.default_rng(0).normal(size=(2, tiny.side, tiny.side, 3)).astype(np.float32)

    @nnx.jit
    def both(net: Backbone, images: jax.Array) -> tuple[list, list]:
        module = SimpleNamespace(backbone=net)
        found = [
            list(protocol.layers(module, images, kind).values())[-1]
            for kind in ("pooled", "cls", "patches")
        ]
        expected = net.features(images)
        found[1] = net.norm(found[1])  # DINOv2's tokens are read before the norm, [cls] after it
        return found, [expected.pooled, expected.cls, expected.tokens.reshape(found[2].shape)]

    for found, expected in zip(*both(backbone, images), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerances.CKA)


def test_layers_of_a_stacked_classifier_are_those_of_both_networks() -> None:
    tiny = tiny_backbones.TINY["deit"]

    def layers(images: jax.Array) -> dict[str, jax.Array]:
        backbone = create(tiny.family, tiny.arch, Execution(), seed=0)
        deit = TokenDeiT(tiny.arch.on_tokens(), Execution(), rngs=nnx.Rngs(0))
        module = StackedClassifier(backbone, deit, 2, eval_mode=True, rngs=nnx.Rngs(0))
        return protocol.layers(module, images, "all")

    found = jax.eval_shape(layers, jax.ShapeDtypeStruct((2, tiny.side, tiny.side, 3), jnp.float32))
    one = ["embedding", *(f"block {i}" for i in range(tiny.arch.num_blocks))]
    assert set(found) == {*one, *(f"transformer {name}" for name in one)}
    assert {x.shape for x in found.values()} == {found["embedding"].shape}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """Of an analysis of a one-block network on drawn squares."""
    folder = tmp_path_factory.mktemp("squares")
    runs.draw_squares(folder / "raw", count=151)
    prepare(folder_spec("squares"), folder / "raw", folder / "data", size=16)
    config = ExperimentConfig(protocol="cka", image_size=16)
    config.data = DataConfig(name="squares", data_dir=str(folder / "data"), prepared_size=16)
    config.augment.center_crop = 1.0
    config.backbone.name = "deit_nano"
    config.backbone.last_block = 0
    config.train.batch_size = 8
    config.train.bootstrap_samples = 0
    config.cka.batch_size = 8
    return config


@pytest.fixture(scope="module")
def trained(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of that network."""
    workdir = tmp_path_factory.mktemp("finetune") / "run"
    tuned = copy.deepcopy(config)
    tuned.protocol = "finetune"
    tuned.cka = CkaConfig()
    tuned.optim.learning_rate = 1e-2
    tuned.train.max_steps = 1
    experiment.run(tuned, workdir)
    return workdir


@dataclasses.dataclass(frozen=True)
class OneRun:
    """A run on some of the devices, in which the judge is called alone."""

    config: ExperimentConfig
    workdir: Path
    dataset: PreparedDataset
    mesh: Mesh
    active: bool = True
    trained: bool = False

    def network(self, config: ExperimentConfig | None = None) -> Network:
        return network.pretrained(config or self.config, self.dataset.info, self.mesh)

    def finished(self, workdir: Path) -> Network:
        return network.finished(workdir, self.mesh)

    def started(self, workdir: Path) -> Network:
        return network.started(workdir, self.dataset.info, self.mesh)


def run_of(config: ExperimentConfig, workdir: Path, devices: int = 1) -> OneRun:
    mesh = parallel.make_mesh(devices=jax.devices()[:devices])
    data = config.data
    dataset = open_or_draw(Path(data.data_dir), data.name, data.prepared_size)
    return OneRun(config, workdir, dataset, mesh)


def changed(config: ExperimentConfig, **values: object) -> ExperimentConfig:
    return dataclasses.replace(config, cka=dataclasses.replace(config.cka, **values))


def test_a_network_before_and_after_training(
    config: ExperimentConfig, trained: Path, tmp_path: Path
) -> None:
    """On 8 devices, against the definition on features that one device computed."""
    assert jax.device_count() == 8
    found = experiment.run(changed(config, run=str(trained)), tmp_path)
    assert found.to_json() == read_values(tmp_path / "result.json")
    values = found.finding.values
    names = ["embedding", "block 0"]
    assert values["pairs"][0]["layers"] == [names, names]

    where = run_of(config, tmp_path)
    after = where.finished(trained)
    before = where.network(after.config)
    dataset = where.dataset
    images = np.stack([dataset.image("test", row) for row in range(len(dataset.ids("test")))])
    features = []
    for each in (after, before):
        arrays = jax.device_put(each.arrays, jax.devices()[0])
        layers = protocol.layers(each.partition.merge(arrays), each.preprocess(images), "all")
        features += [np.asarray(x).reshape(len(images), -1) for x in layers.values()]
    groups = hsic.even_batches(len(images), 8, seed=0)
    assert len({len(rows) for rows in groups}) == 2  # they do not divide the images
    expected = direct(features, groups, mean=False)
    between = np.array(values["pairs"][0]["cka"], float)
    np.testing.assert_allclose(between, expected[:2, 2:], rtol=0, atol=tolerances.CKA_OF_NETWORKS)
    assert between.diagonal().max() < 0.9999  # it has learned something

    header, *rows = csv.reader((tmp_path / "cka.csv").open())
    assert header[1:] == [row[0] for row in rows]
    table = np.array([row[1:] for row in rows], float)
    np.testing.assert_allclose(table, expected, rtol=0, atol=tolerances.CKA_OF_NETWORKS)
    assert (tmp_path / "cka_layers.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "block 0" in page


def test_several_networks(config: ExperimentConfig, tmp_path: Path) -> None:
    """One block, beside the whole network twice: the last layers of all with each other."""
    other = ("deit_nano", "deit_nano")
    asked = changed(config, other=other, features="pooled", estimator="exact")
    found = protocol.judge(run_of(asked, tmp_path))
    assert found.values["networks"] == [f"deit_nano, random weights ({i})" for i in (1, 2, 3)]
    assert [len(x["layers"][1]) for x in found.values["pairs"]] == [3, 3]
    assert set(found.figures) == {"cka_layers_1.png", "cka_layers_2.png", "cka_last.png"}
    assert set(found.charts) == set(found.figures)
    last = np.array(found.values["last_layers"])
    assert last[1, 2] == pytest.approx(1, abs=tolerances.CKA)  # one and the same
    assert 0 < last[0, 1] < 0.99
    assert not found.notes


def test_a_network_beside_itself_and_the_estimator_of_the_study(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    found = protocol.judge(run_of(changed(config, estimator="averaged"), tmp_path))
    (pair,) = found.values["pairs"]
    assert pair["networks"] == ["deit_nano, random weights"] * 2
    np.testing.assert_allclose(np.diagonal(pair["cka"]), 1, atol=tolerances.CKA)
    assert "mean of ratios" in found.notes[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"other": ("resnet18x",)}, "unknown backbone 'resnet18x'"),
        ({"other": ("runs/none",)}, "runs/none holds no result.json"),
        ({"batch_size": 7}, "cka.batch_size=7: expected 8 or more"),
        ({"estimator": "exact"}, "expected cka.estimator='summed'"),
    ],
)
def test_what_cannot_be_compared(
    config: ExperimentConfig,
    values: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "EXACT_BYTES", 1000)
    with pytest.raises(UserError, match=message):
        protocol.judge(run_of(changed(config, **values), tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"features": "cls"}, "expected 'all', 'patches' or 'pooled'"),
        ({"estimator": "exact"}, "expected cka.estimator='summed'"),
    ],
)
def test_what_a_trained_network_will_not_have_is_refused_before_its_training(
    config: ExperimentConfig,
    values: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(protocol, "EXACT_BYTES", 1000)
    asked = dataclasses.replace(changed(config, **values), protocol="finetune", judges=("cka",))
    asked.backbone = dataclasses.replace(asked.backbone, name="resnet_nano")
    with pytest.raises(UsageError, match=message):
        experiment.run(asked, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_undefined_similarity_is_drawn_and_numbered() -> None:
    names = ["a" * 60, "b"]
    values = np.array([[1, np.nan], [np.nan, 1]])
    drawn = draw_chart(Matrix(values=values, unit="CKA", rows=names, columns=names))
    assert drawn.startswith(b"\x89PNG")
