"""LlamaFarm fine-tuning: from a strategy and a file of examples to a fine-tuned language model.

The floors of the house, and which of them may import which, are drawn in `docs/architecture.md` and
enforced by the layers contract in `pyproject.toml`.
"""

import os

__version__ = "0.1.0"

# How often a thread of torch looks whether the others have come before it sleeps; GNU's OpenMP reads this as
# torch is loaded, hence here. By default it looks for milliseconds: beside another busy program it then wears
# out its own time while the one it waits for is not let on (docs/performance.md has the measurement).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
