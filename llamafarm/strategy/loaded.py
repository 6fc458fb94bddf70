"""A strategy as `load.py` returns it, and the files that paths in it mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llamafarm.errors import DataError
from llamafarm.redaction import hide_users
from llamafarm.strategy.document import Origin, show_key
from llamafarm.strategy.retired import Retired
from llamafarm.strategy.schema import Strategy


@dataclass(frozen=True)
class LoadedStrategy:
    """A resolved strategy and where everything in it came from."""

    key: str
    """Its name in the file."""
    strategy: Strategy
    file: Path | None
    """The file that it stands in; None for a preset of the package."""
    origins: Mapping[str, Origin]
    """By dotted path, such as `training_args.learning_rate`: every setting's origin."""
    own_train_file: str | None = None
    """`dataset.train_file` before the command line replaced it; `resolve_path` looks in its folder too."""
    retired: tuple[Retired, ...] = ()
    """Keys that were set and have no meaning any more."""

    @property
    def retired_record(self) -> list[dict[str, str]]:
        """Return the retired keys as JSON has them: path, why, and where it was set."""
        return [{"path": key.path, "why": key.why, "where": key.origin.where} for key in self.retired]


def resolve_path(path: str, loaded: LoadedStrategy) -> Path:
    """Return the file or folder that a path from a strategy or the command line means.

    A relative one is tried against the working directory, the strategy file's folder and the folder of the
    strategy's own `dataset.train_file`. Raises DataError, naming the places, if it is in none.
    """
    try:
        given = Path(path).expanduser()
    except RuntimeError:  # a home folder that cannot be told
        given = Path(path)
    folders = [Path()]
    if loaded.file is not None:
        folders.append(loaded.file.parent)
    if loaded.own_train_file is not None and not given.is_absolute():
        folders += [folder / Path(loaded.own_train_file).parent for folder in tuple(folders)]
    tried = list(dict.fromkeys(folder / given for folder in folders))
    for candidate in tried:
        if _exists(candidate):
            return candidate
    raise DataError(
        f"{show_key(hide_users(path))} does not exist",
        where=f"tried {', '.join(_show(candidate) for candidate in tried)}",
        remedy="Give a path that exists from the working directory, or an absolute one.",
    )


def _show(path: Path) -> str:
    shown = str(path.absolute())
    return shown if shown.isprintable() else repr(shown)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a null character, a folder closed to us
        return False
