"""Encode the rows of a file, on several processors where it is large; the blocks come in the file's order.

A process is a plain command that reads blocks and writes what became of them. `multiprocessing` would start
the caller's script again in each.
"""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from llamafarm.data.encoding.block import BlockEncoder, EncodedBlock
from llamafarm.data.encoding.messages import describe_rows, read_result, write_message
from llamafarm.data.reading.bad_row import BadRowError, RawRow
from llamafarm.data.reading.records import DataReader
from llamafarm.errors import MachineError
from llamafarm.interpreter import command_of, environment_of_ours

_ROWS_OF_A_BLOCK = 512
# A block ends early where its lines are long.
_CHARACTERS_OF_A_BLOCK = 2**21
# Smaller files are done before another process has started.
_LEAST_BYTES_FOR_PROCESSES = 8 * 2**20


def encode_file(reader: DataReader, encoder: BlockEncoder, num_processes: int) -> Iterator[EncodedBlock]:
    """Yield the rows of a file, or of a folder's files, block by block; the reader counts them.

    Raises `DataError` and `TemplateError` for a row that cannot be read or rendered, `MachineError` if a
    process ends by itself.
    """
    with ExitStack() as stack:
        encode = _start(stack, encoder, num_processes if _is_large(reader) else 1)
        for file, result in encode(_raw_blocks(reader, encoder)):
            for row_number, bad in result.bad_rows:
                reader.leave_out(bad, file, row_number)
            reader.num_rows += len(result.traces)
            if len(result.traces):
                yield result
    reader.finish(encoder.parser)


def _is_large(reader: DataReader) -> bool:
    return reader.num_bytes() >= _LEAST_BYTES_FOR_PROCESSES


def _raw_blocks(reader: DataReader, encoder: BlockEncoder) -> Iterator[tuple[Path, list[RawRow]]]:
    """Yield rows of one file at a time; the first that is good tells all encoders their form."""
    block: list[RawRow] = []
    of_file: Path | None = None
    num_characters = 0
    for file, row_number, raw in reader.iterate_raw():
        if block and (
            file != of_file or len(block) == _ROWS_OF_A_BLOCK or num_characters > _CHARACTERS_OF_A_BLOCK
        ):
            yield of_file or file, block
            block, num_characters = [], 0
        of_file = file
        block.append((row_number, raw))
        num_characters += len(raw) if isinstance(raw, str) else 0
        if encoder.parser.format_name is None:
            _tell_form(encoder, row_number, raw)
    if block and of_file is not None:
        yield of_file, block


def _tell_form(encoder: BlockEncoder, row_number: int, raw: Any) -> None:
    try:
        encoder.parser.parse(row_number, raw)
    except BadRowError:
        return  # it is found again in its block, and told with its place


class _EncodeHere:
    """Blocks encoded one after the other, in this process."""

    def __init__(self, encoder: BlockEncoder) -> None:
        self._encoder = encoder

    def __call__(self, blocks: Iterable[tuple[Path, list[RawRow]]]) -> Iterator[tuple[Path, EncodedBlock]]:
        for file, block in blocks:
            yield file, self._encoder.encode(block)


class _EncodeThere:
    """Blocks encoded by processes, each with a thread here that talks to it."""

    def __init__(self, stack: ExitStack, encoder: BlockEncoder, num_processes: int) -> None:
        self._encoder = encoder
        self._num_processes = num_processes
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._threads = ThreadPoolExecutor(num_processes)
        stack.callback(self._threads.shutdown, cancel_futures=True)
        for _ in range(num_processes):
            process = _Process()
            stack.callback(process.kill)  # before the threads are waited for
            self._idle.put(process)

    def __call__(self, blocks: Iterable[tuple[Path, list[RawRow]]]) -> Iterator[tuple[Path, EncodedBlock]]:
        pending: deque[tuple[Path, Future[EncodedBlock]]] = deque()
        for file, block in blocks:
            pending.append((file, self._threads.submit(self._encode, block)))
            if len(pending) > 2 * self._num_processes:
                first_file, first = pending.popleft()
                yield first_file, first.result()
        for file, future in pending:
            yield file, future.result()

    def _encode(self, block: Sequence[RawRow]) -> EncodedBlock:
        process = self._idle.get()
        try:
            return process.encode(self._encoder, block)
        finally:
            self._idle.put(process)


def _start(stack: ExitStack, encoder: BlockEncoder, num_processes: int) -> _EncodeHere | _EncodeThere:
    if num_processes <= 1 or encoder.encoding.tokenizer_json is None:
        return _EncodeHere(encoder)
    return _EncodeThere(stack, encoder, num_processes)


class _Process:
    """Another process, which encodes blocks until there are no more."""

    def __init__(self) -> None:
        # One processor each: the tokenizer needs no threads of its own.
        environment = {**environment_of_ours(), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(  # noqa: S603 - a list, and nobody's input
            command_of("llamafarm.data.encoding.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._has_encoder = False

    def encode(self, encoder: BlockEncoder, block: Sequence[RawRow]) -> EncodedBlock:
        """Return what `encoder` makes of a block. Raises its errors, and `MachineError`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            if not self._has_encoder:
                write_message(self._process.stdin, encoder.recipe())
                self._has_encoder = True
            write_message(self._process.stdin, describe_rows(block))
            return read_result(self._process.stdout)
        except TypeError:  # a table's dates and the like, which JSON does not have
            return encoder.encode(block)
        except (EOFError, OSError) as error:
            raise self._death() from error

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _death(self) -> MachineError:
        return MachineError(
            f"a process that encodes rows has ended by itself (exit code {self._process.wait()})",
            where="the rows' encoding",
            remedy="If memory is short, set training_args.dataloader_num_workers: 0, which takes no others.",
        )
