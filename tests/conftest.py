"""What all tests share: checked shapes, and compiled programs kept between runs."""

import gc
import os
from pathlib import Path

from compiling import FAST

# Before jax is imported, and in the environment, so that programs which tests start share it.
_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Eight devices are simulated, for the tests of sharding. Programs that tests start get one, and
# are compiled as for users (`runs.environment`).
_FLAGS = ("--xla_force_host_platform_device_count=8", *FAST)
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

from hypothesis import HealthCheck, settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# The same examples everywhere, however busy the machine.
settings.register_profile(
    "fmi_jax",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fmi_jax")

# The heap holds whatever JAX has traced: a full collection, every few tests, takes half a second.
gc.set_threshold(10_000, 10, 100)


def pytest_collection_finish() -> None:
    """Leave what was imported out of all later collections."""
    gc.freeze()


install_import_hook(["fmi_jax.nn", "fmi_jax.models"], "beartype.beartype")
