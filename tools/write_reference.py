"""Write the generated pages of `docs/`: strategy keys, other keys, verbs, the guide's tables.

`python tools/write_reference.py` writes them, with `--check` it changes nothing and exits with 1 if one is
stale. What stands in them comes from the schema, the commands and `planning.guide`; `reference/` beside this
has a module for each page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # so that the checkout is documented, whatever is installed

from tools.reference.commands import write_commands  # noqa: E402
from tools.reference.guide import write_guide  # noqa: E402
from tools.reference.keys import write_other_keys  # noqa: E402
from tools.reference.strategy import write_strategy  # noqa: E402

NOTICE = "<!-- Written by tools/write_reference.py; `make docs` writes it anew. -->\n\n"
PAGES = {
    "docs/reference/strategy.md": write_strategy,
    "docs/reference/other-keys.md": write_other_keys,
    "docs/reference/commands.md": write_commands,
    "docs/guide/tables.md": write_guide,
}


def pages() -> dict[str, str]:
    """Return the text of every page by its path from the root of the repository."""
    return {path: NOTICE + write() for path, write in PAGES.items()}


def stale_pages(root: Path = ROOT) -> list[str]:
    """Return the pages that are not there or not as they would be written now."""
    return [
        path
        for path, text in pages().items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]


def write_pages(root: Path = ROOT) -> None:
    """Write every page under `root`."""
    for path, text in pages().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def main() -> None:
    """Run the command line of this tool."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a page is stale; change nothing")
    if not parser.parse_args().check:
        write_pages()
        return
    if stale := stale_pages():
        sys.exit(f"stale: {', '.join(stale)}; run `make docs`")


if __name__ == "__main__":
    main()
