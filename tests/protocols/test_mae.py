"""MAE: held to the one of transformers; masks, what the backbone computes, what is refused."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_packages  # noqa: F401 - before transformers
import short_runs
import tiny_backbones
import torch
import transformers
from flax import nnx
from tolerances import PARITY_FORWARD

from fmi_jax.config import ExperimentConfig
from fmi_jax.errors import UsageError
from fmi_jax.models.base import Backbone, Execution, create
from fmi_jax.models.deit import DeiT, DeiTArch
from fmi_jax.models.registry import BACKBONES
from fmi_jax.protocols import mae
from fmi_jax.protocols.mae import Mae, MaeConfig
from fmi_jax.protocols.spec import Parts, Pixels
from fmi_jax.rules import validate
from fmi_jax.run.network import read_trained, trained_backbone
from fmi_jax.tasks.reconstruction import Reconstruction
from fmi_jax.training.partition import named_values, partition

SIDE, PATCH, BATCH = 35, 5, 3
PATCHES = (SIDE // PATCH) ** 2
ARCH = DeiTArch(
    in_channels=3,
    patch_size=PATCH,
    width=33,
    depth=2,
    num_heads=3,
    mlp_width=37,
    distilled=False,
    grid_size=SIDE // PATCH,
    norm_eps=1e-6,
)
SEQUENCES = [name for name, tiny in tiny_backbones.TINY.items() if tiny.family.cls_first]
OPTIONS = MaeConfig(decoder_depth=2, decoder_width=28, decoder_heads=2)


def config(name: str = "deit_nano", **options: Any) -> ExperimentConfig:
    made = ExperimentConfig(protocol="mae", image_size=SIDE)
    made.backbone.name = name
    made.mae = dataclasses.replace(OPTIONS, **options)
    return made


def model_of(backbone: Backbone, asked: ExperimentConfig) -> Mae:
    rngs: Any = nnx.Rngs(5)
    parts = Parts(
        backbone=backbone,
        transformer=None,
        num_classes=0,
        config=asked,
        rngs=rngs,
    )
    model = mae.fit(asked, backbone.arch).module(parts)
    assert isinstance(model, Mae)
    return model


def theirs() -> transformers.ViTMAEForPreTraining:
    """The reference, every parameter drawn, its positions learning as ours do."""
    made = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=SIDE,
            patch_size=PATCH,
            hidden_size=ARCH.width,
            num_hidden_layers=ARCH.depth,
            num_attention_heads=ARCH.num_heads,
            intermediate_size=ARCH.mlp_width,
            decoder_hidden_size=OPTIONS.decoder_width,
            decoder_num_hidden_layers=OPTIONS.decoder_depth,
            decoder_num_attention_heads=OPTIONS.decoder_heads,
            decoder_intermediate_size=4 * OPTIONS.decoder_width,
            layer_norm_eps=ARCH.norm_eps,
            mask_ratio=OPTIONS.mask_ratio,
            norm_pix_loss=True,
        )
    )
    made.decoder.initialize_weights(PATCHES)
    drawn = torch.Generator().manual_seed(7)
    for name, parameter in made.named_parameters():
        if name != "decoder.decoder_pos_embed":
            start = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = start + 0.2 * torch.randn(parameter.shape, generator=drawn)
            parameter.requires_grad_(True)
    return made.eval()


def carried(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of the reference by our names: parameters, or their gradients."""
    found = {
        "backbone.cls_token": values["vit.embeddings.cls_token"],
        "backbone.pos_embed": values["vit.embeddings.position_embeddings"],
        "backbone.patch_embed.proj.kernel": values[
            "vit.embeddings.patch_embeddings.projection.weight"
        ].transpose(2, 3, 1, 0),
        "backbone.patch_embed.proj.bias": values["vit.embeddings.patch_embeddings.projection.bias"],
        "head.mask_token": values["decoder.mask_token"],
    }
    layers = {"head.embed": "decoder.decoder_embed", "head.predict": "decoder.decoder_pred"}
    norms = {"backbone.norm": "vit.layernorm", "head.norm": "decoder.decoder_norm"}
    blocks = {f"backbone.blocks.{i}": f"vit.layers.{i}" for i in range(ARCH.depth)}
    for i in range(OPTIONS.decoder_depth):
        blocks[f"head.layers.{i}"] = f"decoder.decoder_layers.{i}"
    for ours, name in blocks.items():
        parts = [f"{name}.attention.{part}_proj" for part in "qkv"]
        kernel, bias = (
            np.concatenate([values[f"{part}.{kind}"] for part in parts])
            for kind in ("weight", "bias")
        )
        found |= {f"{ours}.attn.qkv.kernel": kernel.T, f"{ours}.attn.qkv.bias": bias}
        layers[f"{ours}.attn.proj"] = f"{name}.attention.o_proj"
        layers |= {f"{ours}.mlp.{n}": f"{name}.mlp.{n}" for n in ("fc1", "fc2")}
        norms[f"{ours}.norm1"] = f"{name}.layernorm_before"
        norms[f"{ours}.norm2"] = f"{name}.layernorm_after"
    for ours, name in layers.items():
        found[f"{ours}.kernel"] = values[f"{name}.weight"].T
        found[f"{ours}.bias"] = values[f"{name}.bias"]
    for ours, name in norms.items():
        found[f"{ours}.scale"] = values[f"{name}.weight"]
        found[f"{ours}.bias"] = values[f"{name}.bias"]
    return found


def test_loss_predictions_and_every_gradient_are_those_of_transformers() -> None:
    rng = np.random.default_rng(3)
    images = rng.normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32)
    noise = rng.random((BATCH, PATCHES)).astype(np.float32)
    reference = theirs()
    said = reference(torch.tensor(images).permute(0, 3, 1, 2), noise=torch.tensor(noise))
    said.loss.backward()
    parameters = dict(reference.named_parameters())
    fixed = parameters.pop("decoder.decoder_pos_embed")[0, 1:]
    np.testing.assert_allclose(
        mae.positions(SIDE // PATCH, SIDE // PATCH, OPTIONS.decoder_width), fixed, atol=1e-6
    )

    model = model_of(create(DeiT, ARCH, Execution(), 0), config())
    values = carried({name: x.detach().numpy() for name, x in parameters.items()})
    expected = carried({name: x.grad.numpy() for name, x in parameters.items()})
    assert values.keys() == named_values(model).keys()
    roles = partition(model, mae.fit(config(), ARCH).learns)
    assert {*roles.params} == values.keys()

    def loss(params: Any, images: Any, order: Any) -> tuple[Any, Any]:
        outputs = roles.merge(params)((images, order), rngs=nnx.Rngs(dropout=0))
        losses, seen = Reconstruction().loss(outputs, {})
        return losses.mean(), (outputs, losses, seen)

    with jax.default_matmul_precision("highest"):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, (outputs, _, seen)), grads = step(
            values, jnp.asarray(images), jnp.argsort(jnp.asarray(noise))
        )
    assert float(value) == pytest.approx(float(said.loss.detach()), rel=PARITY_FORWARD)
    np.testing.assert_array_equal(outputs.masked, said.mask.numpy() == 1)
    logits = said.logits.detach().numpy()
    np.testing.assert_allclose(
        outputs.predicted, logits, atol=PARITY_FORWARD * np.abs(logits).max()
    )
    for name, reference_grad in expected.items():
        largest = np.abs(reference_grad).max()
        np.testing.assert_allclose(
            grads[name], reference_grad, atol=PARITY_FORWARD * largest, err_msg=name
        )
    count = 3 * PATCH**2  # the variance is that of a sample, divided by one less
    np.testing.assert_allclose(seen["loss_of_means"], (count - 1) / count, rtol=1e-4)


@pytest.mark.parametrize("name", SEQUENCES)
def test_blocks_see_the_patches_that_are_kept_and_no_others(name: str) -> None:
    """All patches in another order give the same tokens in that order; a few give a few."""
    tiny = tiny_backbones.TINY[name]
    backbone: Any = tiny_backbones.fill(
        tiny_backbones.abstract(tiny.family, tiny.arch, Execution())  # type: ignore[type-var]
    )
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, tiny.side, tiny.side, 3)).astype(np.float32)
    patches = int(np.prod(backbone.grid(tiny.side, tiny.side)))
    order = np.stack([rng.permutation(patches) for _ in images])

    @jax.jit
    def last(images: Any, order: Any) -> Any:
        count = backbone.arch.num_blocks
        *_, whole = backbone.outputs(images, count)
        *_, turned = backbone.outputs(images, count, kept=order)
        *_, few = backbone.outputs(images, count, kept=order[:, :5])
        hidden = images.at[:, : tiny.arch.patch_size, : tiny.arch.patch_size].set(7)  # type: ignore[attr-defined]
        *_, others = backbone.outputs(hidden, count, kept=order[:, :5])
        return whole, turned, few, others

    order[0] = np.roll(order[0], -1 - np.flatnonzero(order[0] == 0)[0])  # its first patch is last
    whole, turned, few, others = map(np.asarray, last(images, order))
    prefix = whole.shape[1] - patches
    expected = np.take_along_axis(whole[:, prefix:], order[..., None], 1)
    tolerance = PARITY_FORWARD * np.abs(whole).max()
    np.testing.assert_allclose(turned[:, prefix:], expected, atol=tolerance)
    np.testing.assert_allclose(turned[:, :prefix], whole[:, :prefix], atol=tolerance)
    assert few.shape[1] == prefix + 5
    np.testing.assert_array_equal(few[0], others[0])


def test_a_mask_is_that_of_the_image_whatever_its_batch() -> None:
    asked = config()
    change = mae.masking(OPTIONS, PATCHES, Pixels(asked, (0.5,) * 3, (0.25,) * 3, jnp.bfloat16))
    keys = jax.random.split(jax.random.key(3), 4)
    images = np.random.default_rng(1).integers(0, 256, (4, 41, 41, 3), np.uint8)
    views, order = jax.jit(change)(keys, {"inputs": images})["inputs"]
    assert views.shape == (4, SIDE, SIDE, 3)
    assert views.dtype == jnp.float32  # what is to be said is not rounded
    np.testing.assert_array_equal(np.sort(order, 1), np.tile(np.arange(PATCHES), (4, 1)))
    assert len({tuple(row) for row in np.asarray(order).tolist()}) == 4
    some = jax.jit(change)(keys[2:], {"inputs": images[2:]})["inputs"]
    np.testing.assert_array_equal(some[1], order[2:])
    model = model_of(create(DeiT, ARCH, Execution(), 0), asked)
    assert model.seen == 12  # a quarter of 49, rounded down


@pytest.mark.parametrize("name", ["sam_vit_b", "swin_tiny", "focalnet_tiny", "resnet50"])
def test_a_backbone_that_cannot_leave_patches_out_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^protocol 'mae': {name} .*such as deit_base"):
        mae.fit(config(name), BACKBONES[name].arch)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match=r"none of the 16 patches .*expected at most 0.9375"):
        mae.fit(config(mask_ratio=0.95), BACKBONES["deit_nano"].arch)
    for options, message in (
        ({"mask_ratio": 1.0}, "less than 1"),
        ({"decoder_width": 30}, "multiple of 4"),
        ({"decoder_heads": 5}, "decoder_width=28: nearest valid is 4"),
    ):
        with pytest.raises(UsageError, match=message):
            validate(config(**options))


def test_the_projection_of_clip_does_not_decay() -> None:
    fit = mae.fit(config("clip_vitb16"), BACKBONES["clip_vitb16"].arch)
    assert not fit.learns("backbone.proj")
    assert fit.learns("backbone.norm.scale")
    assert fit.learns("head.mask_token")


def test_a_network_that_has_learned_nothing_is_named() -> None:
    (note,) = mae._warn(ExperimentConfig(), {"loss": 0.75, "loss_of_means": 0.75})
    assert "learned nothing" in note
    assert not [*mae._warn(ExperimentConfig(), {"loss": 0.7, "loss_of_means": 0.75})]


def test_a_run_learns_resumes_exactly_and_hands_its_backbone_on(tmp_path: Path) -> None:
    squares = short_runs.prepare_squares(tmp_path)
    squares.train.max_steps, squares.train.checkpoint_every_steps = 12, 6
    squares.optim.warmup_steps = 0
    asked = short_runs.changed(squares, {"protocol": "mae", "mae.mask_ratio": 0.5})
    short_runs.run(asked, tmp_path / "whole")
    short_runs.run_stopped(copy.deepcopy(asked), tmp_path / "stopped", after=6)
    losses = short_runs.losses(tmp_path / "whole")
    assert short_runs.losses(tmp_path / "stopped") == losses
    assert sum(losses[-3:]) < sum(losses[:3])
    whole, stopped = (trained_backbone(read_trained(tmp_path / n)) for n in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(stopped[name], value, err_msg=name)
    probe = short_runs.changed(squares, {"protocol": "knn", "knn.k": (5,)})
    probe.backbone.run = str(tmp_path / "whole")
    assert "protocol 'mae'" in " ".join(short_runs.run(probe, tmp_path / "knn").notes)
