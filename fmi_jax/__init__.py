"""fmi_jax: which vision foundation model for medical images, and how?"""

__version__ = "0.1.0"
