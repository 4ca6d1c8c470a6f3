"""Command line of the fault campaign."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run a campaign, or one case of it; returns 1 if an invariant did not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description="Disturb commands at random, and check that nothing is lost or wrong.",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--case", type=int, metavar="N", help="replay this case alone")
    values = parser.parse_args()
    # Before jax is imported; commands inherit it.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    folder = Path(tempfile.mkdtemp(prefix="fmi_jax-faults-"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
    from .campaign import Campaign, table

    campaign = Campaign(folder, values.seed)
    if values.case is not None:
        campaign.one(values.case)
    else:
        campaign.run(values.minutes)
    print(table(campaign.outcome))
    if campaign.outcome.failures:
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
