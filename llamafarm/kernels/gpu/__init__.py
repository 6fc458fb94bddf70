"""Kernels in one pass each, compiled for a GPU by Triton, which torch brings on Linux.

What is not a matrix product is bound by a GPU's memory: plain torch reads and writes a tensor for each
operation, these read each input once and write each output once. `elementwise`, `loss` and `dropout` above
have the plain forms, and come here where `choice` finds that it works. Only this room knows Triton.
"""
