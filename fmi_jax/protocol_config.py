"""Config sections that only single protocols read; see `fmi_jax.config` for the others.

A section that the chosen protocol does not read must keep its defaults: no setting of a user is
silently ignored (`fmi_jax.protocols.spec.check_read`).
"""

import dataclasses

from fmi_jax.rules import different, not_negative, one_of, positive, some_of


@dataclasses.dataclass(slots=True)
class TransformerConfig:
    """Transformer on top of a foundation model (protocols `stacked_*`).

    Attributes:
      name: a plain DeiT among the backbones; its patch embedding is left out.
      weights: weights of the transformer, given as in `backbone.weights`; the study's are "in1k".
        Empty: random initialisation.
    """

    name: str = "deit_base"
    weights: str = ""


@dataclasses.dataclass(slots=True)
class ProbeGridConfig:
    """Many linear heads trained in one pass (protocol `probe_grid`).

    Attributes:
      learning_rates: learning rates, one head for each and per seed. The study searched four
        between 1e-5 and 1e-3 and does not print them.
      seeds: initialisations of every head; they share the stream of images.
      cached: True to train on the features of unaugmented images, computed once.
    """

    learning_rates: tuple[float, ...] = different((1e-5, 4.6e-5, 2.2e-4, 1e-3))
    seeds: int = positive(1)
    cached: bool = False


@dataclasses.dataclass(slots=True)
class KnnConfig:
    """Nearest neighbours among the training images (protocol `knn`).

    Attributes:
      k: numbers of neighbours; the best by validation is reported.
      temperature: temperatures in the weights `exp(cosine / temperature)`; every pair with a `k`
        is judged.
    """

    k: tuple[int, ...] = different((200,))
    temperature: tuple[float, ...] = different((0.1,))


@dataclasses.dataclass(slots=True)
class LogisticConfig:
    """Logistic regression on frozen features (protocol `logistic`).

    Attributes:
      c: inverse strengths of the L2 penalty, as in scikit-learn; the best by validation is
        reported.
      max_iterations: most iterations of L-BFGS.
    """

    c: tuple[float, ...] = different((1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0))
    max_iterations: int = positive(1000)


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
    targets: tuple[str, ...] = some_of(("q", "v"), "q", "v", "proj", "mlp")


@dataclasses.dataclass(slots=True)
class AttentiveConfig:
    """A learned query that pools the tokens of a frozen backbone (protocol `attentive_probe`).

    Attributes:
      num_heads: number of attention heads; divides the width of the tokens. 0: heads of 64
        channels or a little more, as in a ViT.
    """

    num_heads: int = not_negative(0)


@dataclasses.dataclass(slots=True)
class CkaConfig:
    """Similarity of networks, layer by layer (protocol `cka`).

    Attributes:
      run: folder of a finished run whose network is the first; empty: the backbone that the
        config describes.
      other: networks to compare it with, each "pretrained" (the start of the first network),
        the folder of a finished run, or "NAME" or "NAME:WEIGHTS" of a backbone.
      features: features to compare: "all" ([cls] and patch tokens), "cls", "patches" or "pooled".
      estimator: "summed" (HSIC terms summed over batches, divided once), "averaged" (the mean
        of the CKA of each batch: the study) or "exact" (all pairs of images at once; the
        features of all of them have to fit into memory).
      batch_size: images per batch, over which the unbiased HSIC is computed; 8 or more.
      split: split whose images are compared.
    """

    run: str = ""
    other: tuple[str, ...] = ("pretrained",)
    features: str = one_of("all", "all", "cls", "patches", "pooled")
    estimator: str = one_of("summed", "summed", "averaged", "exact")
    batch_size: int = positive(64)
    split: str = one_of("test", "train", "val", "test")


@dataclasses.dataclass(slots=True)
class TimingConfig:
    """Latency and throughput of backbones (protocol `timing`).

    Attributes:
      backbones: names of backbones to measure beside `backbone.name`.
      reference: backbone that all others are divided by, measured in turn with them.
      transformer: DeiT under which each backbone is measured once more ("deit_base"); empty: none.
      batch_size: images per step for throughput; latency is that of one image.
      repeats: rounds over all backbones, from which medians and spreads are taken.
    """

    backbones: tuple[str, ...] = ()
    reference: str = "deit_base"
    transformer: str = ""
    batch_size: int = positive(32)
    repeats: int = positive(10)
