"""All protocols by name."""

from fmi_jax.protocols import finetune, linear_probe
from fmi_jax.protocols.spec import ProtocolSpec
from fmi_jax.registry import Registry

PROTOCOLS: Registry[ProtocolSpec] = Registry("protocol", (linear_probe.SPEC, finetune.SPEC))
