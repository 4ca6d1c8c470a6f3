"""What the compiler makes of a program, in numbers."""

import time
from typing import Any

from fmi_jax import parallel
from fmi_jax.aot import hlo, ideal, kept, pairs, products, step, traffic
from fmi_jax.aot.program import Program
from fmi_jax.aot.sizes import sizes


def report(program: Program) -> dict[str, Any]:
    """Compile `program` and read everything that the harness says of it.

    All numbers are of one chip. Keys:

    * `title`, `config`, `target`, `what`;
    * `state_bytes`: what the step is given: parameters, optimizer state, the batch;
    * `activation_bytes`: what it needs beside that while it runs;
    * `peak_bytes`: the most that is held at once; `fits`: whether that is the chip's memory;
    * `flops`: products, convolutions and cuDNN's attention of the optimised program, with the
      trips of loops; `uncounted`: kernels that are not in it; `compiler_flops`: what the compiler
      itself states, loop bodies once, or None;
    * `bytes_accessed`: as the compiler states it, else what operations read and write;
    * `cycles`: estimated by the TPU compiler, or None;
    * `collectives`: `{kind: [count, bytes]}`; `ideal`: `{kind: bytes}`; `ideal_bytes`: their sum;
    * `kernels`: operations that the device starts;
    * `n_by_n`: shapes of arrays with a number for every pair of tokens;
    * `lower_seconds`, `compile_seconds`.

    Raises:
      UserError: the config or the batch cannot be.
      Exception: whatever tracing or the compiler raises.
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
