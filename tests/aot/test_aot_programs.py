"""`make test-aot`: the steps compiled for H200s and for TPUs v5e, neither of which is here.

Every family's training step once for each target, cut to two blocks (SAM to three: its third is
the first that attends over the whole map), with the ways to divide a step spread over them;
evaluation, features and FSDP of a ViT and of a ResNet beside them. Eight images a chip at 224
pixels, one at 1022 and 1024.

The TPU compiler works at its level O1. Needs the compilers (`make .venv-aot`); what they made is
kept between runs.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from fmi_jax.aot.compiler import Compiler
from fmi_jax.aot.program import Program, program
from fmi_jax.aot.targets import CHIPS, target

pytestmark = pytest.mark.aot

TARGETS = {"h200": 8, "v5e": 4}
WITHIN = 1.1  # of the bytes that must be communicated
LARGE = 1000  # pixels: from here on one image a chip


@dataclasses.dataclass(frozen=True)
class Case:
    """A program, and what is expected of it beside that it compiles and fits.

    Attributes:
      backbone: its name.
      what: which step.
      pixels: side of the images.
      last_block: last block that is kept.
      fields: further fields of the config.
      ideal: whether it communicates what it must and hardly more. A batch norm reduces its
        statistics beside that.
      most_collectives: how many there may be; None: any number.
    """

    backbone: str
    what: str = "train"
    pixels: int = 224
    last_block: int = 1
    fields: tuple[tuple[str, Any], ...] = ()
    ideal: bool = True
    most_collectives: int | None = None

    def __str__(self) -> str:
        fields = [f"{name.rpartition('.')[2]}-{value}" for name, value in self.fields]
        return "-".join([self.backbone, str(self.pixels), self.what, *fields])


CASES = (
    Case("deit_base", fields=(("train.sharding", "fsdp"),)),
    Case("clip_vitb16", fields=(("train.model_parallel", 2),)),
    Case("blip_base", fields=(("optim.accumulate", 4),)),
    Case("dinov2_vitb14", pixels=1022),
    Case("sam_vit_b", pixels=1024, last_block=2, most_collectives=10),
    Case("resnet50", fields=(("optim.accumulate", 4),), ideal=False),
    Case("focalnet_tiny"),
    Case("seem_focal_tiny"),
    Case("swin_tiny"),
    Case("focal_tiny"),
    Case("deit_base", "eval"),
    Case("deit_base", "features"),
    Case("resnet50", "eval", fields=(("train.model_parallel", 2),)),
    Case("resnet50", "features"),
    Case("resnet50", fields=(("train.sharding", "fsdp"),), ideal=False),
)


# Training without labels, whose teacher follows, training on masks, and evaluations of several
# views; each for one target where the two compilers have nothing of it to do differently.
DINO = Case("deit_base", fields=(("protocol", "dino"), ("dino.local_size", 96)))


def masks(backbone: str, head: str, last_block: int, *more: tuple[str, Any]) -> Case:
    fields = (("protocol", "fit"), ("adapt", "full"), ("head", head), ("augment.center_crop", 1.0))
    return Case(backbone, last_block=last_block, fields=(*fields, *more))


MASKS = masks(
    *("deit_base", "decoder", 1),
    *(("augment.distort_probability", 0.3), ("loss.dice_over", "batch")),
    *(("augment.tone_probability", 0.3), ("augment.zoom_probability", 0.25)),
)
UNET = masks("resnet50", "unet", 3)
WINDOWS = dataclasses.replace(
    UNET,
    what="eval",
    fields=(*UNET.fields, ("views.name", "windows"), ("data.prepared_size", 565)),
)
TEN_CROP = Case("deit_base", "eval", fields=(("views.name", "ten_crop"),))
OTHERS = {
    **{f"{name}-windows": (name, WINDOWS) for name in TARGETS},
    **{f"{name}-ten_crop": (name, TEN_CROP) for name in TARGETS},
    **{f"{name}-dino": (name, DINO) for name in TARGETS},
    **{f"{name}-masks": (name, MASKS) for name in TARGETS},
    **{
        f"{name}-{head}-{backbone}": (name, masks(backbone, head, 3))
        for name in TARGETS
        for backbone, head in (
            *(("resnet50", "unet"), ("dinov2_vits14", "unet")),
            ("swin_tiny", "upernet"),
        )
    },
    "h200-byol": ("h200", Case("deit_tiny", fields=(("protocol", "byol"),))),
    "v5e-simsiam": ("v5e", Case("deit_tiny", fields=(("protocol", "simsiam"),))),
    **{
        f"{name}-mae": (
            name,
            Case("deit_tiny", fields=(("protocol", "mae"), ("mae.decoder_depth", 2))),
        )
        for name in TARGETS
    },
}
PROTOTYPES = 65_536
MANY = Case("deit_tiny", fields=(("protocol", "dino"), ("dino.prototypes", PROTOTYPES)))


def asked(name: str, case: Case) -> Program:
    images = 1 if case.pixels >= LARGE else 8
    fields = {
        "backbone.name": case.backbone,
        "backbone.last_block": case.last_block,
        "image_size": case.pixels,
        "train.batch_size": TARGETS[name] * images,
        **dict(case.fields),
    }
    level = "O1" if CHIPS[name].platform == "tpu" else ""
    return program(target(name), case.what, fields=fields, optimization=level)


Answers = dict[tuple[str, Case], Future[dict[str, Any]]]


@pytest.fixture(scope="session")
def answers(request: pytest.FixtureRequest) -> Iterator[Answers]:
    """What comes of every program that is to be tested: the targets side by side, each with a
    process that compiles its programs one after another."""
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    with contextlib.ExitStack() as stack:
        found: Answers = {}
        for name in dict.fromkeys(params["name"] for params in chosen):
            compiler = stack.enter_context(Compiler(name))
            queue = stack.enter_context(ThreadPoolExecutor(1))
            stack.callback(queue.shutdown, cancel_futures=True)
            for params in chosen:
                if params["name"] == name:
                    case = params["case"]
                    found[name, case] = queue.submit(compiler.report, asked(name, case))
        yield found


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_it_compiles_fits_and_communicates_what_it_must(
    name: str, case: Case, answers: Answers
) -> None:
    report = answers[name, case].result()
    assert "error" not in report, report["error"]
    assert report["fits"]
    assert report["flops"] > 0
    assert report["n_by_n"] == []
    moved = report["collectives"]
    if case.ideal:
        assert sum(size for _, size in moved.values()) <= WITHIN * report["ideal_bytes"], (
            moved,
            report["ideal"],
        )
        if ("train.sharding", "fsdp") in case.fields:
            # A reduce-scatter takes as many times the bytes that it makes as there are chips.
            scattered = moved["reduce-scatter"][1] * TARGETS[name]
            ideal = report["ideal"]
            assert moved["all-gather"][1] <= WITHIN * ideal["all-gather"]
            assert scattered + moved["all-reduce"][1] <= WITHIN * ideal["reduce-scatter"]
    if case.most_collectives is not None:
        assert sum(count for count, _ in moved.values()) <= case.most_collectives


@pytest.mark.parametrize(("name", "case"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_classification_compiles_too(name: str, case: Case, answers: Answers) -> None:
    report = answers[name, case].result()
    assert "error" not in report, report["error"]
    assert report["fits"]
    assert report["flops"] > 0


@pytest.mark.parametrize("case", [MANY], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_the_logits_of_many_prototypes_stay_where_they_are(
    name: str, case: Case, answers: Answers
) -> None:
    """No device sees another's logits, and few copies of its own are held at once."""
    report = answers[name, case].result()
    assert "error" not in report, report["error"]
    assert set(report["collectives"]) == {"all-reduce"}
    # Gradients of the head cross in float32, at twice the bytes of the ideal.
    assert report["collectives"]["all-reduce"][1] <= 2 * WITHIN * report["ideal_bytes"]
    options = asked(name, case).config.dino
    logits = 8 * (2 + options.local_crops) * PROTOTYPES * 4
    head = options.bottleneck_width * PROTOTYPES * 4
    assert report["activation_bytes"] <= 4 * (logits + head)


def test_there_are_at_most_thirty_programs() -> None:
    assert len(TARGETS) * len(CASES) <= 30
