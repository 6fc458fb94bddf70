"""The arithmetic of a step: attention within documents, the loss, dropout; each with a plain twin.

Imports torch and nothing of ours. The twins in `reference` are the oracle of the tests and the fallback.
"""
