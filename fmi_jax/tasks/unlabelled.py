"""Images without labels: nothing to train by, and nothing to measure."""

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from fmi_jax.data.labels import Label
from fmi_jax.errors import UsageError
from fmi_jax.tasks.base import Metric, Task


class Unlabelled(Task):
    """The task of a data set without labels: it has no metric, and whatever needs a label fails.

    Protocols that need labels refuse such a set before they ask for any of this.
    """

    name = "unlabelled"
    label = Label.NONE
    metrics: ClassVar[Mapping[str, Metric]] = {}
    selects = ""
    file = ""
    shown = ()
    per_class: ClassVar[Mapping[str, str]] = {}

    def metric(self, name: str) -> Metric:
        """Describe no metric; `UsageError` for the name of one."""
        if name:
            raise UsageError(
                f"metric={name!r}: a data set without labels has no metric; expected none."
            )
        return Metric(label="")

    def _no_labels(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError("nothing can be learned from labels or measured: the data set has none.")

    loss = measure = checked = values = kinds = evaluate = keep = read = truth = _no_labels
