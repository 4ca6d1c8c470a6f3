"""The published code that weights are compared with, and how it takes an exported file.

Imports torchvision, which timm and open_clip import in turn, beside any build of torch.

The compiled operators of torchvision belong to one build of torch; beside another one it imports
only once they are declared. No test calls them.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

try:
    import torchvision
except RuntimeError:
    _declared = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor a, Tensor b, float c) -> Tensor")
    import torchvision

__all__ = ["load_exported", "torchvision"]


def load_exported(
    model: Any, path: Path, *, part: str = "", wrapper: str = "", **options: Any
) -> torch.nn.Module:
    """A copy of `model` with nothing but the weights of an exported file.

    Args:
      model: module of a published class; one of transformers reads the file by its own loader.
      path: the file.
      part: name of the attribute of a larger published network that `model` is.
      wrapper: entry of the file that holds the tensors.
      options: arguments of the loader of transformers.

    Raises:
      RuntimeError: a key or shape is missing, not expected or another.
    """
    if hasattr(model, "from_pretrained"):
        folder = path.parent / "pretrained"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(path.read_bytes())
        loaded, report = type(model).from_pretrained(
            folder, config=model.config, output_loading_info=True, **options
        )
        if any(report.values()):
            raise RuntimeError(f"{path}: {report}")
        return loaded.eval()
    loaded = copy.deepcopy(model)
    for value in loaded.state_dict().values():
        value.zero_()
    whole = torch.nn.ModuleDict({part: loaded}) if part else loaded
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, weights_only=True)
    whole.load_state_dict(state[wrapper] if wrapper else state, strict=True)
    return loaded
