"""`data preview`: rows exactly as the model will see them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.data.opening import open_data
from llamafarm.commands.options import Settings, StrategyFile, StrategyName, set_mode

if TYPE_CHECKING:
    from llamafarm.inspection.pieces import Piece


def preview(
    file: Annotated[Path, typer.Argument(help="Data file, or a folder of them.")],
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    num_rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many rows, from the first.")] = 3,
    row_numbers: Annotated[
        str | None, typer.Option("--row", metavar="17,20", help="These rows, by their lines.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the same as a page for the browser.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Show rows exactly as the model will see them: what is trained on, and every special token.

    Rows that cannot be read are passed over; `data inspect` lists them. Without a strategy the embedded
    model's tokenizer and template are used.
    """
    from llamafarm.inspection.page import write_page
    from llamafarm.inspection.pieces import merge_pieces, split_into_pieces

    set_mode(prints_json=False)
    wanted = _read_numbers(row_numbers)
    opened = open_data(file, strategy, strategy_file, settings)
    encoder = opened.encoder
    rows = (row for row in opened.reader if wanted is None or row.row_number in wanted)
    shown: list[tuple[str, str, list[Piece]]] = []
    for conversation, encoded in encoder.encode(rows):
        for row in encoded:
            counts = f"{row.num_tokens} tokens, {row.num_supervised_tokens} trained on"
            pieces = list(merge_pieces(split_into_pieces(row, encoder.tokenizer)))
            shown.append((f"row {conversation.row_number}", counts, pieces))
        if len(shown) >= (len(wanted) if wanted else num_rows):
            break
    _check_found(shown, row_numbers, file)
    subtitle = f"{encoder.base.name}'s tokenizer; template: {encoder.template_origin}"
    if html is not None:
        terminal.write_text(html, write_page(str(file), subtitle, shown))
        terminal.result(str(html))
        return
    terminal.say(subtitle)
    has_color = terminal.result_has_color()
    legend = [("trained on", "trained"), ("  ", ""), ("special token", "special"), ("  shown only\n", "")]
    terminal.result_styled(_mark(legend, has_color))
    for heading, counts, pieces in shown:
        terminal.result_styled([(f"\n{heading}", "bold"), (f"  {counts}\n", "faint")])
        styled = [(piece.text.replace("\n", "⏎\n"), _style_of(piece)) for piece in pieces]
        terminal.result_styled([*_mark(styled, has_color), ("\n", "")])


def _style_of(piece: Piece) -> str:
    if piece.is_special:
        return "trained special" if piece.is_trained else "special"
    return "trained" if piece.is_trained else ""


def _mark(pieces: list[tuple[str, str]], has_color: bool) -> list[tuple[str, str]]:
    """Without colours, put what is trained on in brackets, and no style."""
    if has_color:
        return pieces
    marked: list[tuple[str, str]] = []
    was_trained = False
    for text, style in [*pieces, ("", "")]:
        is_trained = style.startswith("trained")
        if is_trained != was_trained:
            marked.append(("⟦" if is_trained else "⟧", ""))
        marked.append((text, ""))
        was_trained = is_trained
    return marked


def _read_numbers(text: str | None) -> set[int] | None:
    from llamafarm.errors import InputError

    if text is None:
        return None
    try:
        return {int(part) for part in text.split(",")}
    except ValueError:
        raise InputError(
            f"{text!r} is no list of line numbers", where="--row", remedy="For example: --row 17,20"
        ) from None


def _check_found(shown: list[tuple[str, str, list[Piece]]], row_numbers: str | None, file: Path) -> None:
    from llamafarm.errors import InputError

    if not shown:
        raise InputError(
            f"there is no row {row_numbers}", where=f"--row, {file}", remedy="Rows count from line 1."
        )
