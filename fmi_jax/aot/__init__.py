"""Ahead-of-time compilation of the real steps for hardware that is not attached.

`target` names the chips, `program` what is compiled, `step` builds it with the functions that a
run calls, `worker` compiles it in a process of its own, which `compiler` starts and asks. From
what the compiler returns `hlo` reads operations, `pairs` finds scores of all pairs of tokens, and
`ideal` says from the config alone what must be communicated. `benchmarks/aot.py` is the front.
"""
