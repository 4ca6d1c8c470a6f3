"""Settings that every experiment has.

Every field is one decision, with the rule for its values beside it. `fmi_jax.config` adds the
options of single protocols; what is below it reads them by their type (`section`).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from fmi_jax.rules import (
    Condition,
    factor,
    fraction,
    low_high,
    not_negative,
    one_of,
    positive,
    ruled,
    some_of,
)

_Section = TypeVar("_Section")

_FLOAT16 = (
    "its largest number is 65504, which gradients and activations exceed without loss scaling;"
    " expected bfloat16 or float32"
)

_DISTORTIONS = ("elastic", "grid", "optical")


@dataclasses.dataclass(slots=True)
class DataConfig:
    """Data set, split and subset of the training images.

    Attributes:
      name: a prepared data set (`fmi-jax prepare` lists them).
      data_dir: folder that holds the prepared sets.
      prepared_size: side in pixels that the images were resized to at preparation.
      split: name of the split rule ("upstream", "stratified", ...); empty: the only
        one prepared, else the data set's first.
      threads: decoding threads; 0: one per CPU core.
      workers: decoding processes beside the trainer; 0 (usually fastest): none.
      fraction: share of the training images to use, the same for every class.
      shots: training images to use per class; 0: all. Set at most one of `fraction` and `shots`.
      subset_seed: random seed that draws the subset.
      sampling: order of the training images: "uniform", each once in every pass, or "balanced",
        each drawn anew, all classes equally often (one class per image).
      thumbnails: show images of the data on the pages of the run.
    """

    name: str = "synthetic"
    data_dir: str = "data"
    prepared_size: int = positive(256, 2**16)
    split: str = ""
    threads: int = not_negative(0, at_most=1024)
    workers: int = not_negative(0, at_most=1024)
    fraction: float = factor(1.0)
    shots: int = not_negative(0)
    subset_seed: int = not_negative(0)
    sampling: str = one_of("uniform", "uniform", "balanced")
    thumbnails: bool = True

    def contradictions(self) -> Iterator[str]:
        """Messages for fields that do not fit together."""
        if self.fraction < 1 and self.shots:
            yield "data.fraction and data.shots are both set: expected at most one"


@dataclasses.dataclass(slots=True)
class AugmentConfig:
    """Augmentation of a training image on the device, applied in this order.

    The defaults are the study's; an operation with probability 0 is off.

    Attributes:
      center_crop: fraction of the prepared side kept before the random crop (224 of 256),
        and the evaluation crop. 1.0: the whole image.
      crop_scale: area range of the random resized crop, relative to the centre crop.
      crop_ratio: aspect ratio range of that crop.
      flip_horizontal, flip_vertical: probability of each flip.
      rotation_probability: probability of a rotation.
      rotation_degrees: largest angle in either direction.
      jitter_probability: probability that colour jitter is applied at all.
      brightness, contrast, saturation, hue: strengths of colour jitter, as in torchvision.
      tone_probability, tone_strength: probability that the tone changes, by brightness and contrast
        or by gamma, one as likely as the other; largest share by which each of them changes, of the
        brightest value, of itself, and of 1.
      grayscale_probability: probability that a colour image becomes grey.
      blur_probability, blur_sigma: probability of a blur, and range of the Gaussian's standard
        deviation in pixels.
      affine_probability: probability that an affine map is applied at all.
      affine_degrees, affine_translate, affine_scale, affine_shear: largest angle in either
        direction; largest move in image widths and in image heights; range of the scale factor;
        largest shear along x in degrees.
      perspective_probability, perspective_distortion: probability of a perspective, and largest
        move of a corner, relative to half a side.
      distort_probability, distortions: probability that the image is distorted, and kinds of which
        one is drawn: "elastic", "grid", "optical".
      zoom_probability, zoom_side: probability that a square of the image is enlarged to all of it,
        and range of the square's side relative to the image's.
      solarize_probability: probability that values from 128 of 255 on are inverted.
      erase_probability, erase_area: probability that a box is erased after normalisation, and
        range of its area relative to the image.
    """

    center_crop: float = factor(0.875)
    crop_scale: tuple[float, float] = low_high((0.8, 1.2))
    crop_ratio: tuple[float, float] = low_high((3 / 4, 4 / 3))
    flip_horizontal: float = fraction(0.5)
    flip_vertical: float = fraction(0.5)
    rotation_probability: float = fraction(0.0)
    rotation_degrees: float = not_negative(5.0)
    jitter_probability: float = fraction(0.8)
    brightness: float = not_negative(0.2)
    contrast: float = not_negative(0.2)
    saturation: float = not_negative(0.1)
    hue: float = not_negative(0.1, at_most=0.5)  # half the colour circle each way is all of it
    tone_probability: float = fraction(0.0)
    tone_strength: float = fraction(0.2)
    grayscale_probability: float = fraction(0.0)
    blur_probability: float = fraction(0.0)
    blur_sigma: tuple[float, float] = low_high((0.1, 2.0))
    affine_probability: float = fraction(0.0)
    affine_degrees: float = not_negative(5.0)
    affine_translate: tuple[float, float] = ruled(
        (0.1, 0.3),
        Condition(
            lambda x: all(0 <= move <= 1 for move in x), "expected two numbers between 0 and 1"
        ),
    )
    affine_scale: tuple[float, float] = low_high((0.1, 3.3))
    affine_shear: float = ruled(
        0.2, Condition(lambda x: 0 <= x < 90, "expected degrees from 0 to below 90")
    )
    perspective_probability: float = fraction(0.0)
    perspective_distortion: float = fraction(0.2)
    distort_probability: float = fraction(0.0)
    distortions: tuple[str, ...] = some_of(_DISTORTIONS, *_DISTORTIONS)
    zoom_probability: float = fraction(0.0)
    zoom_side: tuple[float, float] = low_high((156 / 224, 1.0), at_most=1)
    solarize_probability: float = fraction(0.0)
    erase_probability: float = fraction(0.0)
    erase_area: tuple[float, float] = low_high((0.02, 0.33), at_most=1)


@dataclasses.dataclass(slots=True)
class ViewsConfig:
    """Views of an image that a network sees in an evaluation.

    Attributes:
      name: "center", the centre crop resized to `image_size`; "ten_crop" (classification), the mean
        over crops of that size at the corners and the centre, and their mirror images, of the
        finished network alone; "windows" (masks), windows of `image_size` at the image's own scale
        that together cover it.
      overlap: share of its side by which a window overlaps the next, at least.
      weights: weights of a window's pixels in the mean: "gaussian", most at its centre, or "flat".
    """

    name: str = one_of("center", "center", "ten_crop", "windows")
    overlap: float = ruled(0.5, Condition(lambda x: 0 <= x < 1, "expected 0 to less than 1"))
    weights: str = one_of("gaussian", "gaussian", "flat")

    def contradictions(self) -> Iterator[str]:
        """Messages for fields that do not fit together."""
        if self.name != "windows" and self != ViewsConfig(name=self.name):
            yield (
                f"views.overlap and views.weights are not read with views.name={self.name!r}:"
                " expected their defaults, or views.name='windows'"
            )

    @property
    def of_validation(self) -> str:
        """Name of the views of a validation: ten crops would take ten times as long."""
        return "center" if self.name == "ten_crop" else self.name


@dataclasses.dataclass(slots=True)
class BackboneConfig:
    """Backbone: its network, weights and compute type.

    Attributes:
      name: a backbone (`fmi-jax models` lists them).
      weights: tag of a converted checkpoint in `weights_dir` ("lvd142m"), a path to a
        converted `.safetensors` file, or empty for random initialisation.
      weights_dir: folder of converted checkpoints.
      run: folder of a finished run whose backbone this run starts from, in place of `weights`;
        trained or frozen there, with adapters (protocol `lora`) merged. Images keep the mean and
        standard deviation that it was trained with.
      run_step: step of that run: "kept", the one that its page reports, or "best", the one of a
        pre-training after which neighbours among the training images agreed best.
      initialisation: draw of the random kernels: "kaiming" (normal, variance 2 / inputs),
        "trunc_normal" (deviation 0.02), or empty: the backbone's own.
      stem: use of a stem trained on colour for other channels: "sum" (as if grey were repeated),
        "mean", "first" (only the red kernel, as in the study's code), or "study" (SEEM on images
        of one channel: also without the stem's padding and norm).
      readout: token that a head reads from BLIP: "cls" or "first_patch" (the study); empty: the
        backbone's own choice, "cls".
      rel_pos_resize: interpolation that fits relative positions (SAM) to `image_size`: "linear" or
        "nearest" (the study); empty: the backbone's own choice, "linear".
      last_block: index of the last block to keep; -1 keeps all.
      frozen_blocks: number of first blocks that do not learn (protocols `partial` and
        `stacked_partial`, and pre-training without labels).
      dtype: compute type: "auto", "float32" or "bfloat16". "auto" is bfloat16 on TPUs and GPUs
        (float32 on NVIDIA GPUs below compute capability 8.0, which have none) and float32 on a CPU,
        which with AVX512-BF16 or AMX takes half the time in bfloat16 (docs/performance.md).
      attention: "auto" (flash attention on GPUs and TPUs that have it) or "plain" (never flash).
      remat: recompute blocks in the backward pass to save memory.
      drop_path: stochastic depth rate of the last block.
    """

    name: str = "dinov2_vitb14"
    weights: str = ""
    weights_dir: str = "weights"
    run: str = ""
    run_step: str = one_of("kept", "kept", "best")
    initialisation: str = one_of("", "", "kaiming", "trunc_normal")
    stem: str = one_of("sum", "sum", "mean", "first", "study")
    readout: str = ""
    rel_pos_resize: str = ""
    last_block: int = ruled(-1, Condition(lambda x: x >= -1, "expected -1 or more"))
    frozen_blocks: int = not_negative(0)
    dtype: str = one_of("auto", "auto", "float32", "bfloat16", reasons={"float16": _FLOAT16})
    attention: str = one_of("auto", "auto", "plain")
    remat: bool = False
    drop_path: float = fraction(0.0)

    def contradictions(self) -> Iterator[str]:
        """Messages for fields that do not fit together."""
        if self.run and self.weights:
            yield (
                f"backbone.run={self.run!r} and backbone.weights={self.weights!r} are both set:"
                " expected one of them (--config.backbone.weights= empties it)"
            )
        if self.run_step != "kept" and not self.run:
            yield "backbone.run_step: expected the folder of a finished run in backbone.run"
        if self.initialisation and (self.run or self.weights):
            yield (
                f"backbone.initialisation={self.initialisation!r} draws what backbone.run or"
                " backbone.weights give: expected it empty"
            )


@dataclasses.dataclass(slots=True)
class OptimConfig:
    """Optimizer: Adam, linear warm-up, then a learning-rate schedule.

    Attributes:
      learning_rate: learning rate reached after warm-up.
      weight_decay: weight decay, on tensors of rank > 1 only.
      weight_decay_end: weight decay at the last step, reached along a cosine; 0: no change.
      decay: "decoupled" (AdamW), or "l2": added to the gradient, as `torch.optim.Adam` does.
      warmup_steps: length of the linear warm-up; the full rate is reached at this step.
      warmup_epochs: length of the warm-up in epochs; set at most one of the two.
      schedule: learning rate after warm-up: "constant", "cosine" (to `cosine_end`),
        "cosine_by_epoch" (constant within an epoch, and an epoch late: the third study's) or
        "plateau" (times `plateau_factor` when validation has not improved for more than
        `plateau_patience` evaluations).
      cosine_end: share of the full learning rate at the end of the cosine schedules.
      plateau_factor: factor on the learning rate at each drop of the plateau schedule.
      plateau_patience: evaluations without improvement that the plateau schedule tolerates.
      plateau_floor: share of the full learning rate below which the plateau schedule ends the
        training, with heads side by side that of every head; 0: never.
      clip_norm: limit on the norm of the gradient; 0: none.
      clip_by: norm that is limited: "global", of all gradients together, or "tensor", of each.
      accumulate: micro-batches per step; the batch is cut into this many.
      layer_decay: factor on the learning rate from each block to the one before it; 1: none.
    """

    learning_rate: float = positive(1e-4)
    weight_decay: float = not_negative(1e-5)
    weight_decay_end: float = not_negative(0.0)
    decay: str = one_of("decoupled", "decoupled", "l2")
    warmup_steps: int = not_negative(0, at_most=2**31 - 1)
    warmup_epochs: float = not_negative(0.0, at_most=1e6)
    schedule: str = one_of("constant", "constant", "cosine", "cosine_by_epoch", "plateau")
    cosine_end: float = fraction(0.0)
    plateau_factor: float = factor(0.1)
    plateau_patience: int = not_negative(2)
    plateau_floor: float = fraction(1e-4)
    clip_norm: float = not_negative(1.0)
    clip_by: str = one_of("global", "global", "tensor")
    accumulate: int = positive(1)
    layer_decay: float = factor(1.0)

    def contradictions(self) -> Iterator[str]:
        """Messages for fields that do not fit together."""
        if self.warmup_steps and self.warmup_epochs:
            yield "optim.warmup_steps and optim.warmup_epochs are both set: expected at most one"


@dataclasses.dataclass(slots=True)
class LossConfig:
    """Loss of a classification or of masks. Metrics stay as they are.

    Attributes:
      class_weights: "none", or "balanced": a class counts in inverse proportion to its training
        images (of masks: its training pixels, in the cross entropy), with several findings per
        image, or masks that overlap, its positives as much as its negatives.
      focal_gamma: exponent of the focal loss, which counts images less that are predicted surely
        and rightly; 0: off, 2 in its paper.
      label_smoothing: share of the truth that is spread over all classes, as in PyTorch.
      soft_labels: range from which a label between 0 and 1 is drawn anew whenever training sees its
        image (several classes per image); (0, 0): labels stay as they were prepared.
      logit_adjustment: factor on the logarithm of each class's share of the training images, which
        is added to its logit in training (one class per image); 0: off, 1 in its paper.
      terms: terms of the loss of masks: "cross_entropy", "dice", or "both", their sum.
      dice_over: pixels that a Dice is of, those of an "image" or of the whole "batch".
      tversky: weights of false and of missed pixels in Dice; (0.5, 0.5) is Dice itself.
    """

    class_weights: str = one_of("none", "none", "balanced")
    focal_gamma: float = not_negative(0.0)
    label_smoothing: float = fraction(0.0)
    soft_labels: tuple[float, float] = ruled(
        (0.0, 0.0), Condition(lambda x: 0 <= x[0] <= x[1] <= 1, "expected 0 <= low <= high <= 1")
    )
    logit_adjustment: float = not_negative(0.0)
    terms: str = one_of("both", "both", "cross_entropy", "dice")
    dice_over: str = one_of("image", "image", "batch")
    tversky: tuple[float, float] = ruled(
        (0.5, 0.5),
        Condition(lambda x: min(x) >= 0 and max(x) > 0, "expected two weights, not both 0"),
    )


@dataclasses.dataclass(slots=True)
class TrainConfig:
    """Training: its length, batch sizes, evaluation, seed and sharding.

    Attributes:
      epochs: passes over the training split.
      max_steps: stop earlier, after this many steps; 0: no limit.
      batch_size: images per step, over all devices and micro-batches.
      eval_batch_size: images per evaluation step; 0: `batch_size`.
      eval_every_epochs: validation interval, in epochs (may be a fraction).
      augment_validation: augment the validation images of a training like its own images, anew in
        each validation; metrics of the finished network never are.
      select_by: choice of the best step, and of the steps at which the plateau schedule drops the
        rate: "metric" (the config's `metric`), or "loss", the value of the trained loss on the
        validation images.
      patience: validations in a row without improvement, from the end of the warm-up, that the
        training outlasts, with heads side by side those of every head; 0: any number.
      log_every_steps: steps between writes of the training scalars.
      checkpoint_every_steps: most steps between two saves; 0: save at evaluations only.
      seed: random seed of initialisation, order, augmentation and everything else.
      model_parallel: devices along the "model" axis of the mesh; 1: pure data parallel.
      sharding: sharding of parameters along "data": "replicated", or "fsdp" (divided).
      bootstrap_samples: resamples for the test confidence intervals.
      lost_after_seconds: silence after which one of several processes is lost, and the others end.
    """

    epochs: float = positive(100.0, at_most=1e6)
    max_steps: int = not_negative(0, at_most=2**31 - 1)
    batch_size: int = positive(64)
    eval_batch_size: int = not_negative(0)
    eval_every_epochs: float = positive(1.0, at_most=1e6)
    augment_validation: bool = False
    select_by: str = one_of("metric", "metric", "loss")
    patience: int = not_negative(0)
    log_every_steps: int = positive(50)
    checkpoint_every_steps: int = not_negative(0)
    seed: int = not_negative(0)
    model_parallel: int = positive(1)
    sharding: str = one_of("replicated", "replicated", "fsdp")
    bootstrap_samples: int = not_negative(1000, at_most=10**6)
    lost_after_seconds: int = positive(100, at_most=10**6)

    @property
    def evaluation_batch_size(self) -> int:
        """Images per evaluation step."""
        return self.eval_batch_size or self.batch_size


@dataclasses.dataclass(slots=True)
class OperatingConfig:
    """Threshold that the validation images choose for each class that is present or not.

    Attributes:
      name: rule: "youden" (largest sensitivity + specificity), "sensitivity" or "specificity" (at
        least `target`), or "cost" (least, where a miss costs `miss` false alarms).
      target: least sensitivity or specificity.
      miss: cost of a missed positive, in false alarms.
      prevalence: share of positives that predictive values are stated for as well; 0: none.
    """

    name: str = one_of("youden", "youden", "sensitivity", "specificity", "cost")
    target: float = fraction(0.9)
    miss: float = positive(1.0)
    prevalence: float = fraction(0.0)


@dataclasses.dataclass(slots=True)
class BaseConfig:
    """Config of an experiment, without the options of single protocols.

    Attributes:
      protocol: protocol that judges the backbone ("linear_probe", "finetune", "knn", ...), or "fit"
        for any pair of `adapt` and `head`.
      adapt: part of the backbone that learns, for "fit" (`fmi-jax protocols` lists them).
      head: network on the backbone, for "fit".
      judges: judges beside the protocol's own.
      image_size: side in pixels of the network's input.
      metric: validation metric that selects the best step and heads the results; empty: the data's.
      group_pooling: rule that makes one prediction of the images of a group (patient, lesion or
        study) at evaluation: "mean", "max" or "noisy_or"; empty: images are evaluated alone.
    """

    protocol: str = ""
    adapt: str = ""
    head: str = ""
    judges: tuple[str, ...] = ()
    image_size: int = positive(224, 2**14)
    metric: str = ""
    group_pooling: str = one_of("", "", "mean", "max", "noisy_or")
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    views: ViewsConfig = dataclasses.field(default_factory=ViewsConfig)
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    operating: OperatingConfig = dataclasses.field(default_factory=OperatingConfig)

    def contradictions(self) -> Iterator[str]:
        """Messages for fields that do not fit together."""
        batch_size, accumulate = self.train.batch_size, self.optim.accumulate
        if accumulate > 0 and batch_size % accumulate:
            yield (
                f"train.batch_size={batch_size} is not a multiple of optim.accumulate={accumulate}"
            )


def section(config: BaseConfig, kind: type[_Section]) -> _Section:
    """Find the section of a config by its type: `section(config, KnnConfig).k`.

    Raises:
      TypeError: the config has no section of that type.
    """
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    sections: dict[type, Any] = {
        type(each): each for each in values if dataclasses.is_dataclass(each)
    }
    if kind not in sections:
        raise TypeError(
            f"{type(config).__name__} has no section of type {kind.__name__}: expected one of"
            f" {', '.join(each.__name__ for each in sections)}"
        )
    return sections[kind]
