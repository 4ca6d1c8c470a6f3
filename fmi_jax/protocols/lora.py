"""LoRA (arXiv 2106.09685): low-rank adapters in a frozen backbone learn, with a linear head.

Not in the paper. Unlike in other frozen backbones, stochastic depth acts where the config asks for
it: the adapters learn inside the network.
"""

from fmi_jax.protocols.heads.linear import LinearClassifier
from fmi_jax.protocols.heads.lora import add_adapters
from fmi_jax.protocols.spec import Parts, ProtocolSpec


def _classifier(parts: Parts) -> LinearClassifier:
    lora = parts.config.lora
    add_adapters(parts.backbone, lora.targets, rank=lora.rank, alpha=lora.alpha, rngs=parts.rngs)
    return LinearClassifier(parts.backbone, parts.num_classes, frozen=False, rngs=parts.rngs)


def _learns(name: str) -> bool:
    return name.startswith("head.") or name.endswith((".lora_a", ".lora_b"))


SPEC = ProtocolSpec(
    name="lora",
    summary="low-rank adapters in a frozen backbone, linear head",
    classifier=_classifier,
    trainable=lambda config, arch: _learns,
    small={"lora.rank": 4},
    reads=("lora", "optim.layer_decay"),
)
