"""The families that the parity tool runs, by their name in `meta.json`."""

from collections.abc import Mapping

from parity_families import deit, dinov2
from parity_families.family import Family

FAMILIES: Mapping[str, Family] = {
    "deit": deit.FAMILY,
    "dinov2": dinov2.FAMILY,
}
