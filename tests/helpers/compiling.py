"""How XLA compiles in tests, which compile much and compute little."""

# Without LLVM's optimisations, and without fusions written in MLIR first: in a fifth of the time.
# Not divided into modules that are compiled side by side: all cores are taken.
FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)

# Options of a compilation where a test looks at what it makes, or computes much: XLA's defaults.
AS_FOR_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}
