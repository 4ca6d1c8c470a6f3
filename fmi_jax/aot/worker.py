"""Compiling process: reads a program as JSON on each line of its input, and writes the report as
JSON on a line of its output.

    python -m fmi_jax.aot.worker h200

`compiler` starts it in the environment that holds the compilers.
"""

import json
import os
import re
import sys
from typing import Any


def main() -> None:
    """Compile each program on the input for the chip that the command line names."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of the compilers must not mix with the answers
    prepare()
    import jax

    from fmi_jax.aot import pretend
    from fmi_jax.aot.targets import CHIPS
    from fmi_jax.run import runtime

    runtime.configure()
    pretend.hardware_of(CHIPS[sys.argv[1]])
    jax.config.update("jax_enable_compilation_cache", False)
    for line in sys.stdin:
        print(json.dumps(answer(line)), file=answers, flush=True)


def prepare() -> None:
    """Set the environment variables that the compilers read when jax starts."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import nvidia.cuda_nvcc  # type: ignore[import-not-found]

    (folder,) = nvidia.cuda_nvcc.__path__
    flags = (
        f"--xla_gpu_cuda_data_dir={folder}",
        "--xla_gpu_autotune_level=0",  # measures kernels on the device
        "--xla_gpu_enable_triton_gemm=false",  # needs the measurements of autotuning
    )
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",  # there is no metadata server to ask
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # else one process at a time
        # Replaces the caller's flags for its own programs, such as simulated devices.
        XLA_FLAGS=" ".join(flags),
    )


def answer(line: str) -> dict[str, Any]:
    """Compile the program on a line; returns its report, or `error` and the exit code for it."""
    from fmi_jax.aot import program, report
    from fmi_jax.errors import UserError

    try:
        return report.report(program.from_json(line))
    except UserError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:  # a step that cannot be traced or compiled is an answer
        return failure(error)


def failure(error: Exception) -> dict[str, Any]:
    """Shorten an error of tracing or the compiler to what a user needs. If the program is too large
    for the chip, `fits` is False and the error says how much too large it is."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return {"error": f"{type(error).__name__}: {text}", "exit_code": 1}
    # After the sizes the compiler lists the largest arrays, by the dozen.
    sizes = re.search(r"Used [\d.]+\w of [\d.]+\w \w+|[^.:]*\([\d.]+\w\) exceeds [^)]*\)", text)
    reason = sizes.group().strip() if sizes else text
    return {"error": f"it does not fit: {reason}.", "fits": False, "exit_code": 1}


if __name__ == "__main__":
    main()
