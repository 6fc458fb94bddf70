"""LlamaFarm fine-tuning: from a strategy and a file of examples to a fine-tuned language model.

The floors of the house, and which of them may import which, are drawn in `docs/architecture.md` and
enforced by the layers contract in `pyproject.toml`.
"""

__version__ = "0.1.0"
