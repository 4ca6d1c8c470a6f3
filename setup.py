"""Adds `configs/` to the wheel as `fmi_jax/configs`; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["fmi_jax*", "weights_convert*"]),
        "fmi_jax.configs",
    ],
    package_dir={"fmi_jax.configs": "configs"},
)
