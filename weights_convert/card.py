"""The model card of a converted file: what it is and where it comes from, for people."""

from fmi_jax.artifacts.weights import Provenance, arch_fields
from fmi_jax.models.base import BackboneSpec


def model_card(spec: BackboneSpec, provenance: Provenance, file: str) -> str:
    """Markdown text for the converted file named `file`."""
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in arch_fields(spec.arch).items())
    note = f"{spec.note[0].upper()}{spec.note[1:]}. " if spec.note else ""
    return f"""# {provenance.backbone}, {provenance.tag}

{note}Converted from PyTorch by fmi_jax {provenance.converter}; numbers are unchanged, only
names and axes differ. {spec.num_params:,} parameters, float32.

| | |
| --- | --- |
| file | `{file}` |
| source | {provenance.source} |
| sha256 of the source | `{provenance.source_sha256}` |
| key layout of the source | `{provenance.layout}` |
| licence of the weights | {provenance.licence} |

## Arch

| | |
| --- | --- |
{rows}

## Use

Add to any training command, with the folder of this file:

```
--config.backbone.name={spec.name} --config.backbone.weights={provenance.tag} \\
--config.backbone.weights_dir=DIR
```

A pretrained backbone, not a medical device: what is trained on it must be validated for its
purpose before anyone relies on it.
"""
