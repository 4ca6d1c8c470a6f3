"""The arrays of a checkpoint of BYOL, which is a pickle of haiku's objects, without its classes.

A pickle names the classes and functions that make its objects, and loading it would run them. Here
none is looked up: an array is made of the bytes, type and shape that the pickle gives, and any
other object is a list of the values that it holds. So neither haiku nor BYOL's code is needed, and
a name of anything else runs nothing.

Source: `byol/utils/checkpointing.py` and `byol/byol_experiment.py` of deepmind-research.
"""

import collections
import math
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmi_jax.errors import UserError

_NETWORKS = {"online": (0, 2), "target": (1, 3)}
"""Places of parameters and running statistics in `experiment_state`."""


def read_haiku_pickle(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read the arrays of both networks, `{"online": {"res_net50.initial_conv.w": ...}, ...}`.

    Raises:
      UserError: the pickle is not a checkpoint of BYOL.
      pickle.UnpicklingError: it is damaged.
    """
    with path.open("rb") as file:
        content = _Unpickler(file).load()
    state = content.get("experiment_state") if isinstance(content, dict) else None
    parts: Sequence[Any] = state.values if isinstance(state, _Object) else state or ()
    if len(parts) < 4:
        found = type(content).__name__
        if isinstance(content, dict):
            found = f"a dict of {', '.join(map(str, content)) or 'nothing'}"
        raise UserError(
            f"{path}: a pickle that neither PyTorch nor BYOL wrote: expected a dict with the"
            f" networks in 'experiment_state', and it is {found}. Where you trust it,"
            " load it and save its arrays with numpy.savez."
        )
    return {
        network: {name: array for place in places for name, array in _arrays(parts[place])}
        for network, places in _NETWORKS.items()
    }


class _Object:
    """Object of a class that is not looked up.

    Attributes:
      values: values that it was made of, and those of its attributes.
    """

    def __new__(cls, *values: Any) -> "_Object":
        made = super().__new__(cls)
        made.values = [*values]
        return made

    values: list[Any]

    def __setstate__(self, state: Any) -> None:
        # Attributes, also of a class with slots: a pair of dicts.
        for each in state if isinstance(state, tuple) else (state,):
            self.values += each.values() if isinstance(each, dict) else [each]


class _Type:
    """Type of an array's numbers.

    Attributes:
      code: letter and size ("f4").
      order: byte order.
    """

    def __init__(self, code: str, *flags: Any):
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"an array of type {code!r}")
        self.code = code
        self.order: Any = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """An array in the making.

    Attributes:
      array: the array; None before its pickle has given it.
    """

    array: np.ndarray | None = None

    def __init__(self, *of_a_class: Any):
        del of_a_class

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_column, data = state
        if not isinstance(kind, _Type) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array of other things than numbers")
        flat = np.frombuffer(data, np.dtype(kind.code).newbyteorder(kind.order))
        if flat.size != math.prod(shape):
            raise pickle.UnpicklingError(f"an array of {flat.size} numbers in the shape {shape}")
        self.array = flat.reshape(shape, order="F" if by_column else "C")


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    """Make the bytes that protocol 2 has as a text."""
    del encoding
    return text.encode("latin1")


_NAMES = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.dtype": _Type,
    "_codecs.encode": _bytes,
    "__builtin__.bytes": _bytes,  # of no bytes
    "collections.OrderedDict": collections.OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        """Give a stand-in for a name; nothing is imported."""
        name = f"{module_name}.{global_name}"
        return _NAMES.get(name) or type(name, (_Object,), {})


def _arrays(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """Every array with the names of the dicts that lead to it, as "res_net50.initial_conv.w".

    haiku's "~" marks modules that a constructor made.
    """
    if isinstance(value, _Array):
        if value.array is not None:
            yield re.sub(r"/(~/)?", ".", "/".join(at)), value.array
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _arrays(each, (*at, str(key)))
    elif isinstance(value, _Object | list | tuple):
        for each in value.values if isinstance(value, _Object) else value:
            yield from _arrays(each, at)
