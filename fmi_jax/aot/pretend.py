"""Makes jax in this process answer as if it ran on the hardware that programs are compiled for."""

import jax

from fmi_jax.aot.targets import Chip
from fmi_jax.nn import hardware


def hardware_of(chip: Chip) -> None:
    """Make traced code choose its kernels as on `chip`, from now on.

    For a process that compiles and runs nothing; it cannot be undone.
    """
    jax.default_backend = lambda: chip.platform
    hardware.compute_capability = lambda: chip.compute_capability
    if chip.compute_capability is not None:
        _cudnn_without_a_gpu(chip.compute_capability)


def _cudnn_without_a_gpu(capability: tuple[int, int]) -> None:
    """Allow `jax.nn.dot_product_attention(implementation="cudnn")` to be lowered without a GPU.

    Three private functions of jax ask the attached GPU for the version of cuDNN and for its
    compute capability, only to choose what may be lowered. Here they answer with the version that
    `jax[cuda12]` installs and with the target's capability. The compiler treats cuDNN's attention
    as an opaque call; whether cuDNN itself would accept it is not known.
    """
    from jax._src.cudnn import fused_attention_stablehlo as attention

    def parsed(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    replaced = {
        "check_cudnn_version": lambda: 91000,
        "check_compute_capability": lambda least: capability >= parsed(least),
        "is_cuda_compute_capability_equal": lambda other: capability == parsed(other),
    }
    for name, function in replaced.items():
        if not hasattr(attention, name):
            raise RuntimeError(
                f"jax {jax.__version__} has no {attention.__name__}.{name}: cuDNN's attention"
                " cannot be compiled without a GPU; see fmi_jax/aot/pretend.py."
            )
        setattr(attention, name, function)
