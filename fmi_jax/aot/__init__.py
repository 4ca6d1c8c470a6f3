"""Ahead-of-time compilation of the real steps for hardware that is not attached.

`targets` names the chips, `program` is what is compiled, `step` builds it with the functions that a
run calls, `worker` compiles it in a process of its own, and `compiler` starts that process and
sends it programs. From the compiler's output `hlo` reads operations and `pairs` finds scores of all
pairs of tokens. `ideal` computes from the config alone what must be communicated.
`benchmarks/aot.py` is the front end.
"""
