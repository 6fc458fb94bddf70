"""Split a JSONL file for training and evaluation; the same as `python cli.py data split`.

python demos/create_data_split.py --input data.jsonl --eval-percent 10
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from llamafarm.interpreter import use_environment_of_checkout

use_environment_of_checkout()

from llamafarm.cli import main  # noqa: E402

sys.argv[1:1] = ["data", "split"]
main()
