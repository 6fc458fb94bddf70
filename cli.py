"""Run the command line from the repository's root, as the guide does: `uv run python cli.py …`."""

from llamafarm.interpreter import use_environment_of_checkout

use_environment_of_checkout()

from llamafarm.cli import main  # noqa: E402

main()
