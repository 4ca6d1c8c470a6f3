"""Self-supervised ResNet-50s, and one of iNat2021, beside supervised ImageNet on seven tasks."""

from collections.abc import Mapping

from fmi_jax.study.grids import transfer
from fmi_jax.study.spec import Figure, Setting, Study

WEIGHTS: Mapping[str, tuple[str, str]] = {
    "imagenet": ("in1k", "ImageNet"),
    "scratch": ("", "Scratch"),
    "inat2021": ("inat2021", "iNat2021"),
    "insdis": ("insdis", "InsDis"),
    "moco_v1": ("moco_v1", "MoCo-v1"),
    "pcl_v1": ("pcl_v1", "PCL-v1"),
    "pirl": ("pirl", "PIRL"),
    "pcl_v2": ("pcl_v2", "PCL-v2"),
    "simclr_v1": ("simclr_v1", "SimCLR-v1"),
    "moco_v2": ("moco_v2", "MoCo-v2"),
    "simclr_v2": ("simclr_v2", "SimCLR-v2"),
    "selav2": ("selav2", "SeLa-v2"),
    "infomin": ("infomin", "InfoMin"),
    "byol": ("byol", "BYOL"),
    "deepclusterv2": ("deepclusterv2", "DeepCluster-v2"),
    "swav": ("swav", "SwAV"),
    "barlow_twins": ("barlow_twins", "BarlowTwins"),
}
"""Tag and published name of each row's weights, in the order of the study's figure."""

OWN_FILES: Mapping[str, str] = {
    "inat2021": "the study's copy of the supervised ResNet-50",
    "insdis": "InsDis.pth of PyContrast",
    "pirl": "PIRL.pth of PyContrast",
    "infomin": "InfoMin_800.pth of PyContrast",
    "simclr_v1": "the study's PyTorch copy",
    "simclr_v2": "the study's PyTorch copy",
    "byol": "the study's PyTorch copy",
}
"""Files that have no address that lasts, by tag: `weights_convert resnet50 --checkpoint FILE --tag
TAG` converts them. SimCLR and BYOL were published for TensorFlow and JAX."""


def setting(name: str, init: str) -> Setting:
    """Make the setting of a task and of initial weights, with its published number."""
    task = transfer.TASKS[name]
    weights, row = WEIGHTS[init]
    where = {"init": row.lower()}
    return Setting(
        at={"dataset": task.dataset, "init": init},
        config=transfer.config(task, "resnet50", weights),
        published=transfer.number(
            task,
            {
                "hosseinzadeh2021_domain_adaptation": where,  # printed: before what was read off
                "hosseinzadeh2021_ssl": where,
                "hosseinzadeh2021_inat": where,
            },
        ),
        why_not=transfer.WHY_NOT_PE,
    )


STUDY = Study(
    name="transfer_ssl",
    publication="hosseinzadeh2021",
    place="Figures of self-supervised models and of iNat2021",
    title="Transfer of self-supervised ResNet-50s and of iNat2021, beside supervised ImageNet",
    settings=lambda: tuple(setting(name, init) for init in WEIGHTS for name in transfer.TASKS),
    rows=("init",),
    figure=Figure(kind="dots", lines="init"),
    rates=(),
    seeds=transfer.RUNS,
    note=(
        "Published as figures: their means were digitised. The study's own tests find"
        " self-supervised weights better than ImageNet's for six methods on SIIM-ACR and"
        " RSNA PE (p < 1e-4), SimCLR v1 on CheXpert (p < 0.01) and SwAV on ChestX-ray14 (p < 0.05)."
        " iNat2021 against ImageNet, p: ChestX-ray14 0.058, CheXpert 0.026, RSNA PE 0.0017,"
        " Shenzhen 0.063, SIIM-ACR 0.19, Montgomery 0.069, DRIVE 0.15. The figure has 87.17 for"
        " supervised ImageNet on CheXpert, the table, which stands here, 87.10. Weights without a"
        " public address are converted from a file of your own: "
        + "; ".join(f"{tag} from {file}" for tag, file in OWN_FILES.items())
        + "."
    ),
    reference={"init": "imagenet"},
)
