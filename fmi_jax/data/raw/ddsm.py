"""DDSM: whole mammograms, by the file lists that the study used.

The study calls its data CBIS-DDSM, but reads the full DDSM: CBIS-DDSM has no normal mammograms.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path

from fmi_jax.data.labels import Label
from fmi_jax.data.raw.drawn.ddsm import draw
from fmi_jax.data.raw.problems import Problems
from fmi_jax.data.raw.spec import SPLITS, DatasetSpec, RawDataset, RawExample
from fmi_jax.data.raw.splits import grouped, official
from fmi_jax.paths import fault_of_file

LISTS = "ddsm_raw_image_lists"
IMAGES = "ddsm_raw"

TWO_CLASSES = {"normal": "Normal", "benign": "Abnormal", "cancer": "Abnormal"}
"""Classes of the study's task, which calls the second one cancer: normal against benign and
malignant findings together."""

THREE_CLASSES = {"normal": "Normal", "benign": "Benign", "cancer": "Cancer"}

_FILE = re.compile(r"(normal|benign|cancer)(?:_without_callback)?_\d+-([A-Z]_\d+)_\d+\.[^/\\]+")


def read(source: Path, *, class_of: Mapping[str, str] = TWO_CLASSES) -> RawDataset:
    """Read `ddsm_raw_image_lists/{train,val,test}.txt`, a file of `ddsm_raw/` in each line.

    A file name gives the class, the volume, the case and the view:
    `benign_01-B_3091_1.LEFT_CC.LJPEG.1.jpg`. "benign_without_callback" is benign, as in the study.
    The group is the case, B_3091: some cases are in several volumes, and so in several lists.

    Args:
      source: folder of the lists and the images.
      class_of: name of the class for each of normal, benign and cancer.

    Raises:
      UserError: a list is missing or not UTF-8 text, or a line is empty, not such a name, or
        listed before. All faults are listed.
    """
    classes = tuple(dict.fromkeys(class_of.values()))
    problems = Problems(source)
    examples: list[RawExample] = []
    listed: dict[str, str] = {}  # file name -> place in the lists
    for split in SPLITS:
        for line, name in _lines(source / LISTS / f"{split}.txt", problems):
            place = f"{split}.txt, line {line}"
            match = _FILE.fullmatch(name)
            if not name:
                problems.add("empty line", place)
            elif not match:
                problems.add(
                    "not a file name of DDSM, expected such as"
                    " 'benign_01-B_3091_1.LEFT_CC.LJPEG.1.jpg' (or normal_..., cancer_...)",
                    f"{place}: {name!r}",
                )
            elif name in listed:
                problems.add("file is listed more than once", f"{listed[name]} and {place}: {name}")
            else:
                listed[name] = place
                examples.append(
                    RawExample(
                        id=name,
                        path=name,
                        label=classes.index(class_of[match[1]]),
                        group=match[2],
                        split=split,
                        row=line,
                    )
                )
    problems.raise_if_any()
    return RawDataset(
        table=source,
        image_root=source / IMAGES,
        examples=examples,
        classes=classes,
        label=Label.INDEX,
    )


def _lines(path: Path, problems: Problems) -> list[tuple[int, str]]:
    """Lines of a text file and their numbers, from 1; faults are added to `problems`."""
    unread = f"list cannot be read, expected {LISTS}/{{{','.join(SPLITS)}}}.txt"
    if path.exists() and (fault := fault_of_file(path)):
        problems.add(unread, f"{path} ({fault})")
        return []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problems.add(unread, f"{path} ({error.strerror})")
    except UnicodeDecodeError as error:
        problems.add("list is not UTF-8 text", f"{path} (byte {error.start})")
    else:
        if not text.strip():
            problems.add("list is empty", str(path))
        return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return []


DDSM = DatasetSpec(
    name="ddsm",
    read=read,
    channels=1,
    mean=(0.286,),
    std=(0.267,),
    metric="roc_auc",
    splits={"grouped": grouped, "official": official},
    layout=f"a folder with {LISTS}/{{train,val,test}}.txt and the images they name in {IMAGES}/",
    citation="Heath et al., The Digital Database for Screening Mammography, IWDM 2001; lists:"
    " Wu et al., DeepMiner: Discovering Interpretable Representations for Mammogram Classification"
    " and Explanation, 2018",
    licence="DDSM: free for research, with citation; lists: MIT",
    url="https://github.com/jimmyyhwu/ddsm-visual-primitives",
    sizes={"official": (8_336, 1_040, 1_044)},
    draw=draw,
)

DDSM_3CLASS = dataclasses.replace(
    DDSM, name="ddsm_3class", read=functools.partial(read, class_of=THREE_CLASSES)
)
