"""Run the command line from the repository's root, as the guide does: `uv run python cli.py …`."""

from llamafarm.cli import main

main()
