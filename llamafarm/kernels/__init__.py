"""The arithmetic of a step, forward and gradient by hand; each kernel with a plain twin.

Imports torch and nothing of ours. The twins in `reference` are the oracle of the tests and the fallback.
"""
