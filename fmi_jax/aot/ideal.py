"""What a step must communicate, from sizes alone: what its collectives are measured against.

P: bytes of the parameters that learn, in the compute type. A: bytes of one activation [b, n, d]
on a chip. Over "data", P is reduced once, whatever the number of micro-batches; with "fsdp", P is
gathered in each pass, 2 P, with `remat` once more, 3 P, and reduce-scattered. Over "model", an
activation is reduced after attention and after the MLP in each pass: 4 A a block. A collective
counts the bytes of its result; a reduce-scatter those that it takes, as the all-reduce does that
stands for it where a compiler has none.
"""

from fmi_jax.aot.sizes import Sizes


def communication(
    sizes: Sizes, *, what: str, data: int, model: int, fsdp: bool, remat: bool
) -> dict[str, int]:
    """Bytes of each kind of collective that one chip needs, by kind.

    Frozen parameters are gathered as well under "fsdp": in the backward pass only where it goes
    through the backbone. An evaluation returns its outputs whole on every chip.

    Args:
      sizes: sizes of the program's network.
      what: "train", "eval" or "features".
      data, model: chips along each axis of the mesh.
      fsdp: whether parameters are divided along "data".
      remat: whether blocks are computed again in the backward pass.
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
