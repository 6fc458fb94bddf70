"""Rows as a page to look at in a browser: self-contained, in the light or dark that the reader prefers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from llamafarm.inspection.pieces import Piece

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2521; --paper: #fbfaf7; --faint: #6c756f; --line: #dcdad2;
  --trained: #d7efdc; --trained-ink: #0c4a22; --special: #ece7dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e1; --paper: #16191a; --faint: #98a09a;
  --line: #313634; --trained: #17402a; --trained-ink: #bdf0cd; --special: #2b2f2e; } }
body { margin: 0 auto; max-width: 52rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; } h2 { font-size: .95rem; margin: 2rem 0 .5rem; }
p, h2 small { color: var(--faint); font-weight: 400; }
pre { margin: 0; padding: 1rem 1.1rem; border: 1px solid var(--line); border-radius: .5rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.7 ui-monospace, Menlo, monospace; }
mark { background: var(--trained); color: var(--trained-ink); padding: .12em 0; }
.special { background: var(--special); color: var(--faint); border-radius: .25em; padding: .1em .3em; }
mark.special { background: var(--trained); color: var(--trained-ink); outline: 1px solid currentColor; }
i { color: var(--faint); font-style: normal; user-select: none; }
"""


def write_page(title: str, subtitle: str, rows: Iterable[tuple[str, str, Sequence[Piece]]]) -> str:
    """Return the page; of each row its heading, its counts and its pieces."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>',
        f"<h1>{escape(title)}</h1><p>{escape(subtitle)}</p>",
        '<p><mark>trained on</mark> &nbsp; shown only &nbsp; <span class="special">special token</span></p>',
    ]
    for heading, counts, pieces in rows:
        text = "".join(map(_show, pieces))
        parts.append(f"<h2>{escape(heading)} <small>{escape(counts)}</small></h2><pre>{text}</pre>")
    return "\n".join(parts) + "\n"


def _show(piece: Piece) -> str:
    text = escape(piece.text).replace("\n", "<i>⏎</i>\n")
    if piece.is_trained:
        return f"<mark{' class=special' * piece.is_special}>{text}</mark>"
    return f"<span class=special>{text}</span>" if piece.is_special else text
