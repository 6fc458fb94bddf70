"""Lines at the foot of the terminal, drawn anew in place, through the one console of `llamafarm.terminal`.

rich's Live does the work; what is added is the case in which the terminal gets narrower meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self, cast

from llamafarm import terminal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult

# Pieces of text, each with a style as rich names it.
Line = Sequence[tuple[str, str]]


class LiveArea:
    """Lines at the foot of the terminal that are drawn anew in place; messages said meanwhile stay above.

    `draw(width, height)` returns the lines for a terminal of this size. It is called by `redraw`, with each
    message, and once a second by a thread of rich's, so that a clock goes on while a step takes a minute.
    """

    def __init__(self, draw: Callable[[int, int], Sequence[Line]]) -> None:
        self._draw = draw
        self._drawn_at_width = 0
        self._drawn_widths: list[int] = []

    def __enter__(self) -> Self:
        from rich.live import Live

        terminal.console().push_render_hook(cast("RenderHook", self))
        # What libraries print goes above the lines as well; a stdout that is a file or a pipe stays one.
        self._live = Live(
            self,
            console=terminal.console(),
            refresh_per_second=1,
            vertical_overflow="crop",
            redirect_stdout=sys.stdout.isatty(),
        )
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._live.stop()
        finally:
            terminal.console().pop_render_hook()

    def redraw(self) -> None:
        """Draw the lines as they are now."""
        self._live.refresh()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase, for rich, the rows that a terminal adds when it gets narrower and folds the drawn lines."""
        from rich.control import Control
        from rich.segment import ControlType

        width = terminal.console().width
        if width >= self._drawn_at_width:
            return renderables
        num_added = sum(max(-(-drawn // width), 1) - 1 for drawn in self._drawn_widths)
        erase = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * num_added
        return [Control(*erase), *renderables]

    def __rich_console__(self, out: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        lines = self._draw(options.max_width, options.size.height)
        self._drawn_at_width = options.max_width
        self._drawn_widths = []
        for line in lines:
            pieces = [Segment(text, out.get_style(style)) for text, style in line]
            self._drawn_widths.append(min(Segment.get_line_length(pieces), options.max_width))
            yield from pieces
            yield Segment.line()
