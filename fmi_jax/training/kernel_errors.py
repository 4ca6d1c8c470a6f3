"""Error message for an accelerator kernel that fails."""

import contextlib
from collections.abc import Iterator

import jax

from fmi_jax.errors import UserError
from fmi_jax.nn import hardware
from fmi_jax.settings import BackboneConfig

_OTHER_CAUSES = ("RESOURCE_EXHAUSTED", "Out of memory")


@contextlib.contextmanager
def kernel_errors(config: BackboneConfig) -> Iterator[None]:
    """Turn a compiler or device error into a message that names the setting to turn off.

    Flash attention is the only part of a program written for one make of hardware and one version
    of its libraries. The error passes through unchanged if flash attention is off, on a CPU, and
    if memory ran out.

    Raises:
      UserError: replaces the error that the block raised.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        text = str(error)
        off = config.attention == "plain" or hardware.platform() == "cpu"
        if off or any(cause in text for cause in _OTHER_CAUSES):
            raise
        raise UserError(
            f"the first step failed on this {hardware.platform().upper()}:"
            f" {text.strip().splitlines()[0][:300]}. Flash attention may be at fault: expected a"
            " kernel that this hardware and its libraries run. Without it, at the same numbers up"
            " to rounding: --config.backbone.attention=plain"
        ) from error
