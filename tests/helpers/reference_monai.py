"""What is compared with MONAI. It tries packages that import torchvision, so that comes first."""

import reference_packages

assert reference_packages.torchvision

from monai.inferers import sliding_window_inference  # noqa: E402
from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # noqa: E402

__all__ = ["compute_hausdorff_distance", "compute_surface_dice", "sliding_window_inference"]
