"""`python -m weights_convert`: what it imports takes seconds, in which Ctrl-C is heard too."""

import sys

from fmi_jax.guard import guarded


def _main() -> None:
    from weights_convert.cli import main

    sys.exit(main())


if __name__ == "__main__":
    sys.exit(guarded(_main))
