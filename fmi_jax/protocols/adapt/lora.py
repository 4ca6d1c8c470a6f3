"""LoRA (arXiv 2106.09685): low-rank adapters in a frozen backbone learn.

Not in the paper. Unlike in other frozen backbones, stochastic depth acts where the config asks for
it: the adapters learn inside the network.
"""

import dataclasses
from collections.abc import Iterator

from flax import nnx

from fmi_jax.errors import UsageError
from fmi_jax.models.base import Backbone
from fmi_jax.nn.lora import LoRALinear
from fmi_jax.protocols.spec import AdaptSpec, Parts
from fmi_jax.rules import positive, some_of
from fmi_jax.settings import section

_TARGETS = ("q", "v", "proj", "mlp")


@dataclasses.dataclass(slots=True)
class LoraConfig:
    """Low-rank adapters in a frozen backbone (protocol `lora`).

    Attributes:
      rank: inner width of an adapter.
      alpha: scale of an adapter, whose output is multiplied by `alpha / rank`.
      targets: linear layers that get an adapter: "q", "v", "proj", "mlp".
    """

    rank: int = positive(8)
    alpha: float = positive(16.0)
    targets: tuple[str, ...] = some_of(("q", "v"), *_TARGETS)


_MLP = ("fc1", "fc2", "w12", "w3")
_FUSED = {"qkv": 3, "w12": 2}  # number of parts, as in `shards.FUSED`


def add_adapters(
    backbone: Backbone, targets: tuple[str, ...], *, rank: int, alpha: float, rngs: nnx.Rngs
) -> None:
    """Put a `LoRALinear` in the place of every linear layer of the blocks that is a target.

    Args:
      backbone: changed in place; its own parameters keep their names.
      targets: "q" and "v": queries and values in the fused projection of an attention (the
        paper's own choice); in a focal modulation, which has neither, what takes their place, the
        query and the context. "proj": the projection out of either. "mlp": every linear layer of
        the MLPs.
      rank: rank of each product.
      alpha: scale; the factor of each product is `alpha / rank`.
      rngs: stream `params`.

    Raises:
      UsageError: no layer is a target (ResNet; ConvNeXt, but for its MLPs), or `rank` is not below
        the width of one.
    """
    found = [
        (parent, name, layer, *_adapted(name, layer, targets))
        for parent, name, layer in _linear_layers(backbone)
        if _adapted(name, layer, targets)[0]
    ]
    if not found:
        valid = [
            target
            for target in _TARGETS
            if any(
                _adapted(name, layer, (target,))[0] for _, name, layer in _linear_layers(backbone)
            )
        ]
        raise UsageError(
            f"adapt 'lora': {type(backbone).__name__} has no linear layer"
            f" {', '.join(targets)} in its blocks: expected "
            + (
                f"lora.targets={tuple(valid)}."
                if valid
                else "a transformer or a focal network; a convolutional one can be fine-tuned"
                " (protocol 'finetune' or 'partial')."
            )
        )
    widest = min(min(layer.in_features, width) for _, _, layer, _, width in found)
    if rank >= widest:
        raise UsageError(
            f"lora.rank={rank}: expected less than {widest}, the width of the narrowest layer that"
            f" is adapted; nearest valid: {widest - 1}."
        )
    for parent, name, layer, starts, width in found:
        parts, scale = _FUSED.get(name, 1), alpha / rank
        setattr(
            parent,
            name,
            LoRALinear(layer, starts, width, parts=parts, rank=rank, scale=scale, rngs=rngs),
        )


def merge_adapters(backbone: Backbone) -> None:
    """The inverse of `add_adapters` for a trained backbone: plain layers that compute the same."""
    for parent, name, layer in list(_linear_layers(backbone)):
        if isinstance(layer, LoRALinear):
            setattr(parent, name, layer.merged())


def _linear_layers(backbone: Backbone) -> Iterator[tuple[nnx.Module, str, nnx.Linear]]:
    """Every linear layer of the blocks that is an attribute: its parent, its name, itself."""
    for _, module in nnx.iter_modules(backbone.blocks):
        for name, child in vars(module).items():
            if isinstance(child, nnx.Linear):
                yield module, name, child


def _adapted(name: str, layer: nnx.Linear, targets: tuple[str, ...]) -> tuple[tuple[int, ...], int]:
    """First output of each part of a layer that is adapted, and the width of a part."""
    if name in ("qkv", "f"):  # the latter, of a focal modulation, is query, context and gates
        width = layer.out_features // 3 if name == "qkv" else layer.in_features
        begins = {"q": 0, "v": 2 * width if name == "qkv" else width}
        return tuple(begin for target, begin in begins.items() if target in targets), width
    whole = "proj" if name == "proj" else "mlp" if name in _MLP else ""
    return (0,) if whole in targets else (), layer.out_features


def _change(parts: Parts) -> None:
    lora = section(parts.config, LoraConfig)
    add_adapters(parts.backbone, lora.targets, rank=lora.rank, alpha=lora.alpha, rngs=parts.rngs)


SPEC = AdaptSpec(
    name="lora",
    summary="low-rank adapters in a frozen backbone",
    learns=lambda config, arch: lambda name: name.endswith((".lora_a", ".lora_b")),
    change=_change,
    merge=merge_adapters,
    eval_mode=False,
    small={"lora.rank": 4},
    options=LoraConfig,
    reads=("lora", "optim.layer_decay"),
)
