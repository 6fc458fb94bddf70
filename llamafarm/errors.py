"""Every error that a person is meant to read, as a tree.

LlamaFarmError                 never raised itself; catch it to catch all of them
├── InputError      exit 2     what the user wrote or named: a strategy, a data file, an argument
│   ├── StrategyError          a strategy file, or a value in it
│   ├── DataError              a data file, or a row in it
│   ├── TemplateError          a prompt template that cannot be rendered or masked exactly
│   ├── ModelError             a base model or an adapter that is not there or cannot be loaded
│   ├── PromptTooLongError     a conversation that does not fit into a model's context
│   └── OutputError            an output folder that is taken, or that cannot be written to
└── MachineError    exit 3     what the machine lacks: memory, a device, a library, the network
    └── NonFiniteError         a loss or a gradient that is not a finite number

Each has three parts, printed on three lines: what is wrong with the value seen, where, what to try.
Anything else that is raised is our fault (exit 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class LlamaFarmError(Exception):
    """A problem that its reader can act on.

    `problem` names the value seen, `where` a file and line, a row or a setting, `remedy` what to try;
    `details` is what `--json` adds to them.
    """

    exit_code: int = 1

    def __init__(
        self, problem: str, *, where: str, remedy: str, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(problem)
        self.details = dict(details or {})
        self.problem = problem
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.where}\n{self.remedy}"

    def as_record(self) -> dict[str, Any]:
        """Return the error as the JSON object that `--json` prints."""
        return {
            "error": type(self).__name__,
            "problem": self.problem,
            "where": self.where,
            "remedy": self.remedy,
            "exit_code": self.exit_code,
            **self.details,
        }


class InputError(LlamaFarmError):
    """Something that the user wrote or named is wrong."""

    exit_code = 2


class StrategyError(InputError):
    """A strategy file, or a value in it, is wrong."""


class DataError(InputError):
    """A data file, or a row in it, is wrong."""


class TemplateError(InputError):
    """A prompt template cannot be rendered, or its answers cannot be told from its prompts exactly."""


class OutputError(InputError):
    """An output folder is taken or cannot be written to."""


class MachineError(LlamaFarmError):
    """The machine lacks something that the work needs."""

    exit_code = 3


class ModelError(InputError):
    """A base model or an adapter is not there or cannot be loaded."""


class PromptTooLongError(InputError):
    """A conversation does not fit into the model's context; nothing of an answer has been written."""


class NonFiniteError(MachineError):
    """A loss or a gradient is not a finite number."""
