"""A block of raw rows to arrays: parsed, rendered, tokenized, made to fit, and their traces taken.

What comes out depends on the block alone, so that any process may do it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.encode import encode_conversations, encode_separately
from llamafarm.data.encoding.fitting import Fitting, Limits, remake
from llamafarm.data.encoding.rows import EncodedRow, EncodedRows, mark_ids, marked_dtype
from llamafarm.data.encoding.template import EVERY_ANSWER, ChatTemplate, TrainedPart
from llamafarm.data.encoding.tokenization import TextEncoder
from llamafarm.data.encoding.words import encoder_of
from llamafarm.data.reading.bad_row import BadRowError, RawRow
from llamafarm.data.reading.records import ReadOptions, RowParser
from llamafarm.data.selection.traces import Traces, TracesWanted, trace_conversations

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RowEncoding:
    """How rows become tokens, by an `encoder` with `num_ids` ids.

    `tokenizer_json` is what it was made from, as `tokenizers` writes it. Without that, no other process can
    do the same, and nothing that is encoded outlives this one.
    """

    template: ChatTemplate
    encoder: TextEncoder
    num_ids: int
    tokenizer_json: str | None = None
    trained: TrainedPart = EVERY_ANSWER
    fitting: Fitting | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBlock:
    """Rows that were encoded. Axes: N, conversations; R, their rows; T, tokens.

    Conversation n has `num_rows_N[n]` rows; `is_remade_N` says that these were made to fit. `bad_rows` were
    no conversations.
    """

    traces: Traces
    num_rows_N: NDArray[np.int32]
    is_remade_N: NDArray[np.bool_]
    lengths_R: NDArray[np.int32]
    num_supervised_R: NDArray[np.int32]
    marked_ids_T: NDArray[np.signedinteger]
    bad_rows: tuple[tuple[int, BadRowError], ...] = ()

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by their names, each of which grows along its first axis."""
        return {**self.traces.columns(), **{name: getattr(self, name) for name in _COLUMNS}}

    @classmethod
    def of_columns(cls, columns: Mapping[str, NDArray[Any]]) -> EncodedBlock:
        """Return the block, or all blocks of a file, that `columns` hold."""
        return cls(Traces.of_columns(columns), **{name: columns[name] for name in _COLUMNS})  # type: ignore[arg-type]

    def rows(self) -> EncodedRows:
        """Return the rows of all conversations."""
        return EncodedRows.lying_in(
            self.marked_ids_T,
            self.lengths_R,
            self.num_supervised_R,
            np.repeat(self.traces.row_numbers_N, self.num_rows_N),
        )


_COLUMNS = ("num_rows_N", "is_remade_N", "lengths_R", "num_supervised_R", "marked_ids_T")


class BlockEncoder:
    """What turns blocks of raw rows into arrays."""

    def __init__(self, options: ReadOptions, encoding: RowEncoding, wanted: TracesWanted) -> None:
        self.parser = RowParser(options)
        self.encoding = encoding
        self._options = options
        self._wanted = wanted

    def encode(self, raw_rows: Sequence[RawRow]) -> EncodedBlock:
        """Return the rows of a block. Raises `TemplateError` for one that cannot be rendered, and names it.

        The form of the rows must have been told from an earlier one, unless this block begins the file.
        """
        conversations: list[Conversation] = []
        bad_rows: list[tuple[int, BadRowError]] = []
        for row_number, raw in raw_rows:
            try:
                conversations.append(self.parser.parse(row_number, raw))
            except BadRowError as bad:
                bad_rows.append((row_number, bad))
        return self.encode_conversations(conversations, bad_rows)

    def encode_conversations(
        self, conversations: Sequence[Conversation], bad_rows: Sequence[tuple[int, BadRowError]] = ()
    ) -> EncodedBlock:
        """Return the rows of conversations, as `encode` does."""
        by_conversation, is_remade = self._encode(conversations)
        rows = [row for rows in by_conversation for row in rows]
        marked = [mark_ids(row.token_ids_T, row.is_supervised_T) for row in rows]
        dtype = marked_dtype(self.encoding.num_ids)
        return EncodedBlock(
            trace_conversations(conversations, self._wanted),
            np.array([len(rows) for rows in by_conversation], np.int32),
            np.array(is_remade, bool),
            np.array([row.num_tokens for row in rows], np.int32),
            np.array([row.num_supervised_tokens for row in rows], np.int32),
            np.concatenate(marked).astype(dtype) if marked else np.zeros(0, dtype),
            tuple(bad_rows),
        )

    def recipe(self) -> dict[str, Any]:
        """Return everything but the file that the arrays follow from, as JSON has it, for `from_recipe`."""
        encoding, fitting = self.encoding, self.encoding.fitting
        return {
            "options": {**asdict(self._options), "columns": dict(sorted(self._options.columns.items()))},
            "format_name": self.parser.format_name,
            "template": encoding.template.recipe(),
            "num_ids": encoding.num_ids,
            "tokenizer": encoding.tokenizer_json,
            "trained": asdict(encoding.trained),
            "limits": None if fitting is None else asdict(fitting.limits),
            "when_too_long": None if fitting is None else fitting.when_too_long,
            "wanted": asdict(self._wanted),
        }

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> BlockEncoder:
        """Return the encoder that gave a recipe; it has a `tokenizer`."""
        limits = recipe["limits"]
        encoding = RowEncoding(
            ChatTemplate.from_recipe(recipe["template"]),
            encoder_of(Tokenizer.from_str(recipe["tokenizer"])),
            recipe["num_ids"],
            recipe["tokenizer"],
            TrainedPart(**recipe["trained"]),
            None if limits is None else Fitting(Limits(**limits), recipe["when_too_long"]),
        )
        encoder = cls(ReadOptions(**recipe["options"]), encoding, TracesWanted(**recipe["wanted"]))
        encoder.parser.format_name = recipe["format_name"]
        return encoder

    def _encode(self, conversations: Sequence[Conversation]) -> tuple[list[list[EncodedRow]], list[bool]]:
        """Return the rows of each conversation, and whether they had to be made anew to fit."""
        encoding, fitting = self.encoding, self.encoding.fitting
        template, encoder, trained = encoding.template, encoding.encoder, encoding.trained
        by_conversation = encode_separately(conversations, template, encoder, trained)
        is_remade = [False] * len(conversations)
        if fitting is None:
            return by_conversation, is_remade

        def encode(conversation: Conversation) -> list[EncodedRow]:
            return encode_conversations([conversation], template, encoder, trained)

        for place, conversation in enumerate(conversations):
            if fitting.limits.admit(by_conversation[place]):
                continue
            if made := remake(conversation, fitting, encode):
                by_conversation[place], is_remade[place] = made, True
        return by_conversation, is_remade
