"""Communication that a step needs, from sizes alone; its collectives are measured against it.

P: bytes of the parameters that learn, in the compute type. A: bytes of one activation [b, n, d]
on a chip. Over "data", P is reduced once, whatever the number of micro-batches. With "fsdp", P is
gathered in each pass (2 P), with `remat` once more (3 P), and reduce-scattered. Over "model", an
activation is reduced after attention and after the MLP in each pass: 4 A a block. A collective
counts the bytes of its result. A reduce-scatter counts the bytes it takes, like the all-reduce that
replaces it where a compiler has none.
"""

from fmi_jax.aot.sizes import Sizes


def communication(
    sizes: Sizes, *, what: str, data: int, model: int, fsdp: bool, remat: bool
) -> dict[str, int]:
    """Compute the bytes that one chip must exchange, by kind of collective.

    Under "fsdp" frozen parameters are gathered too, in the backward pass only if gradients go
    through the backbone. An evaluation returns its outputs whole on every chip.

    Args:
      sizes: sizes of the program's network.
      what: kind of step: "train", "eval" or "features".
      data, model: chips along each axis of the mesh.
      fsdp: True if parameters are divided along "data".
      remat: True if blocks are recomputed in the backward pass.
    """
    found = {"all-reduce": 0, "all-gather": 0, "reduce-scatter": 0}
    train = what == "train"
    if model > 1:
        found["all-reduce"] += (2 if train else 1) * sum(sizes.activations)
    if data > 1 and not train:
        found["all-gather"] += sizes.outputs
        if fsdp:
            found["all-gather"] += sizes.learned + sizes.frozen
    if data > 1 and train and not fsdp:
        found["all-reduce"] += sizes.learned
    if data > 1 and train and fsdp:
        passes = 1 if not sizes.backward else 3 if remat else 2
        found["all-gather"] += (3 if remat else 2) * sizes.learned + passes * sizes.frozen
        found["reduce-scatter"] += sizes.learned
    return {kind: size for kind, size in found.items() if size}
