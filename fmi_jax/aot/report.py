"""Report of a compiled program: its memory, FLOPs, communication and kernels."""

import time
from typing import Any

from fmi_jax import parallel
from fmi_jax.aot import hlo, ideal, kept, pairs, products, step, traffic
from fmi_jax.aot.program import Program
from fmi_jax.aot.sizes import sizes


def report(program: Program) -> dict[str, Any]:
    """Compile `program` and collect all its figures.

    All numbers are for one chip. Keys:

    * `title`, `config`, `target`, `what`, `optimization`: the program;
    * `state_bytes`: arguments of the step: parameters, optimizer state, the batch;
    * `activation_bytes`: memory needed beside the arguments while it runs;
    * `peak_bytes`: most memory held at once; `memory_bytes`: the chip's memory; `fits`: whether the
      peak fits into it;
    * `flops`: products, convolutions and cuDNN's attention of the optimised program, loop trips
      included; `uncounted`: kernels that are not in it; `compiler_flops`: the compiler's own
      figure, loop bodies once, or None;
    * `bytes_accessed`: the compiler's own figure, else what operations read and write;
    * `cycles`: estimate of the TPU compiler, or None;
    * `collectives`: `{kind: [count, bytes]}`; `ideal`: `{kind: bytes}`; `ideal_bytes`: their sum;
    * `kernels`: number of operations that the device starts;
    * `n_by_n`: shapes of arrays with a number for every pair of tokens;
    * `lower_seconds`, `compile_seconds`: time for lowering and compiling.

    Raises:
      UserError: the config or the batch is invalid.
      Exception: any error of tracing or the compiler.
    """
    start = time.perf_counter()
    lowered = step.lower(program)
    lowering = time.perf_counter() - start
    made = kept.compiled(program, lowered)
    module = hlo.read(made.text)
    flops, uncounted = products.flops(module)
    config = program.config
    mesh = parallel.make_mesh(config.train.model_parallel, devices=program.target.devices())
    network = sizes(program, step.network(config), step.CLASSES, mesh)
    needed = ideal.communication(
        network,
        what=program.what,
        data=mesh.shape["data"],
        model=mesh.shape["model"],
        fsdp=config.train.sharding == "fsdp",
        remat=config.backbone.remat,
    )
    return {
        **program.to_json(),
        "title": program.title(),
        "state_bytes": made.arguments,
        "activation_bytes": made.temporaries,
        "peak_bytes": made.peak,
        "memory_bytes": program.target.chip.memory,
        "fits": made.peak <= program.target.chip.memory,
        "flops": flops,
        "uncounted": uncounted,
        "compiler_flops": made.costs.get("flops"),
        "bytes_accessed": made.costs.get("bytes accessed") or traffic.bytes_accessed(module),
        "cycles": traffic.cycles(module),
        "collectives": traffic.collectives(module),
        "ideal": needed,
        "ideal_bytes": sum(needed.values()),
        "kernels": traffic.kernels(module),
        "n_by_n": pairs.pairs(module, network),
        "lower_seconds": round(lowering, 1),
        "compile_seconds": round(made.seconds, 1),
    }
