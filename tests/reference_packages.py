"""Imports torchvision, which timm and open_clip import in turn, beside any build of torch.

The compiled operators of torchvision belong to one build of torch; beside another one it imports
only once they are declared. No test calls them.
"""

import torch

try:
    import torchvision
except RuntimeError:
    _declared = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _declared.define(f"{_name}(Tensor a, Tensor b, float c) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
