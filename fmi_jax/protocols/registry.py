"""All protocols by name."""

from fmi_jax.protocols import (
    attentive_probe,
    cka,
    finetune,
    knn,
    linear_probe,
    logistic,
    lora,
    partial,
    probe_grid,
    stacked,
    timing,
)
from fmi_jax.protocols.spec import AnyProtocol
from fmi_jax.registry import Registry

PROTOCOLS: Registry[AnyProtocol] = Registry(
    "protocol",
    (
        linear_probe.SPEC,
        finetune.SPEC,
        stacked.PROBE,
        stacked.FINETUNE,
        partial.LINEAR,
        partial.STACKED,
        attentive_probe.SPEC,
        lora.SPEC,
        probe_grid.SPEC,
        knn.SPEC,
        logistic.SPEC,
        cka.SPEC,
        timing.SPEC,
    ),
)
