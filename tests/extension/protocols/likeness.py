"""How alike the classes look to a backbone: cosines of their mean features."""

import numpy as np

from fmi_jax.artifacts.charts import Matrix
from fmi_jax.artifacts.result import Finding, Headline
from fmi_jax.data.labels import class_membership
from fmi_jax.protocols.choice import every_image
from fmi_jax.protocols.judging import Run
from fmi_jax.protocols.spec import JudgeSpec

FIGURE = "likeness.png"


def judge(run: Run) -> Finding:
    """Compare the mean features of the classes of the test images."""
    split, classes = run.features()["test"], run.dataset.info.classes
    members = class_membership(split.labels, len(classes))
    means = members.T @ split.features
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    cosines = np.clip(means @ means.T, 0, 1)
    others = cosines[~np.eye(len(classes), dtype=bool)]
    return Finding(
        judge="likeness",
        title=f"Likeness of the classes of {run.dataset.info.name}",
        values={"classes": list(classes), "cosines": cosines.tolist()},
        text=f"mean cosine of two classes {others.mean():.3f}",
        headline=Headline(name="likeness", unit="cosine", value=float(others.mean())),
        figures={FIGURE: "Cosines of the mean features of the classes"},
        charts={FIGURE: Matrix(values=cosines, unit="cosine", rows=classes, columns=classes)},
    )


SPEC = JudgeSpec(
    name="likeness",
    summary="likeness of the classes",
    judge=judge,
    images=every_image,
    shows="analysis",
    label="likeness of the classes",
)
