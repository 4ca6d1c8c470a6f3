"""Registry of all data sets by name."""

import dataclasses
import functools

from fmi_jax.data.prepared import DatasetInfo, rule_of
from fmi_jax.data.raw.aptos2019 import APTOS2019
from fmi_jax.data.raw.busi import BUSI
from fmi_jax.data.raw.cbis_ddsm import CBIS_DDSM, CBIS_DDSM_CROPS, CBIS_DDSM_TYPE
from fmi_jax.data.raw.chestxray14 import CHESTXRAY14
from fmi_jax.data.raw.chexpert import (
    CHEXPERT,
    CHEXPERT_RGB,
    CHEXPERT_SMOOTH,
    CHEXPERT_U_IGNORE,
    CHEXPERT_U_ONES,
)
from fmi_jax.data.raw.class_folders import folder_spec
from fmi_jax.data.raw.csv_table import csv_spec
from fmi_jax.data.raw.ddsm import DDSM, DDSM_3CLASS
from fmi_jax.data.raw.drawn.fundus import draw as draw_fundus
from fmi_jax.data.raw.drive import DRIVE
from fmi_jax.data.raw.fundus_lesions import FUNDUS_LESIONS
from fmi_jax.data.raw.isic2018_lesions import ISIC2018_LESIONS
from fmi_jax.data.raw.isic2019 import ISIC2019
from fmi_jax.data.raw.montgomery import MONTGOMERY
from fmi_jax.data.raw.patch_camelyon import PATCH_CAMELYON
from fmi_jax.data.raw.scr import SCR, SCR_CLAVICLE, SCR_HEART
from fmi_jax.data.raw.shenzhen import SHENZHEN
from fmi_jax.data.raw.siim_pneumothorax import SIIM_PNEUMOTHORAX
from fmi_jax.data.raw.spec import DatasetSpec
from fmi_jax.data.raw.vindr_cxr import VINDR_CXR
from fmi_jax.registry import Registry

SYNTHETIC = dataclasses.replace(
    APTOS2019,  # same raw layout, so that it follows the path of real data
    name="synthetic",
    mean=None,
    std=None,
    citation="drawn by fmi_jax",
    licence="Apache-2.0",
    url="",
    draw=functools.partial(draw_fundus, count=600),
    sizes={},
    synthetic=True,
)

_REFUSED = {
    "rsna_pe": "the third study never released its loader and its split of RSNA's CT scans"
    " with pulmonary embolism, so nothing could be compared with its results. Expected a table of"
    " your own slices, with a split and patients: fmi-jax prepare csv --name my_pe --source"
    " TABLE.csv.",
}

DATASETS: Registry[DatasetSpec] = Registry(
    "data set",
    (
        APTOS2019,
        ISIC2019,
        CHEXPERT,
        CHEXPERT_U_ONES,
        CHEXPERT_SMOOTH,
        CHEXPERT_RGB,
        CHEXPERT_U_IGNORE,
        DDSM,
        DDSM_3CLASS,
        CHESTXRAY14,
        SHENZHEN,
        CBIS_DDSM,
        CBIS_DDSM_CROPS,
        CBIS_DDSM_TYPE,
        PATCH_CAMELYON,
        BUSI,
        MONTGOMERY,
        DRIVE,
        ISIC2018_LESIONS,
        SIIM_PNEUMOTHORAX,
        SCR,
        SCR_HEART,
        SCR_CLAVICLE,
        VINDR_CXR,
        SYNTHETIC,
        FUNDUS_LESIONS,
        csv_spec(),
        folder_spec(),
    ),
    _REFUSED,
)


def note_on(info: DatasetInfo) -> str:
    """Note on the labels of a prepared set; empty if its data set has none for this split."""
    return DATASETS[info.name].notes.get(rule_of(info.split), "") if info.name in DATASETS else ""
