"""Names from outside made into paths: of strategies, models, shards, exports. None leads out of its folder.

A name that a file or a person gave is one part of a path, or it is refused: nothing is made of it that could
be meant otherwise on another system. What is already there under that name may be a link, which could lead
anywhere: it has to stay in the folder, too.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from pathlib import Path

from llamafarm.errors import InputError, OutputError

# 255 is what file systems take; an unfinished file is called `.NAME.unfinished`.
_MOST_BYTES = 240
_SHOWN_CHARACTERS = 80
_SEPARATORS = "/\\:" if os.name == "nt" else "/\\"
# Names of devices on Windows, whatever follows their first dot.
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])[ ]*(\..*)?", re.IGNORECASE)
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
# They turn the text around that is shown after them.
_TURNING = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def fault_of_name(name: object) -> str | None:
    """Return why something is not the name of a file in a folder; None if it is one."""
    if not isinstance(name, str):
        return f"it is no text ({type(name).__name__})"
    if not name.strip():
        return "it is empty"
    if any(unicodedata.category(sign) in _CONTROLS or sign in _TURNING for sign in name):
        return "it has a control character in it"
    if any(sign in name for sign in _SEPARATORS):
        return "it has a separator of folders in it"
    if set(name) == {"."}:
        return "it means a folder above"
    if name != name.strip() or name.endswith("."):
        return "it begins or ends with a blank, or ends with a dot"
    if _RESERVED.fullmatch(name):
        return "it is the name of a device on Windows"
    return f"it is longer than {_MOST_BYTES} bytes" if len(name.encode()) > _MOST_BYTES else None


def check_name(name: object, *, where: str) -> str:
    """Return a name that can only be that of a file or folder in a folder. Raises `InputError`."""
    if (fault := fault_of_name(name)) is not None:
        shown = repr(name)
        shown = shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"
        raise InputError(
            f"{shown} cannot be the name of a file: {fault}",
            where=where,
            remedy="Use letters, digits and _ - . in it.",
        )
    assert isinstance(name, str)
    return name


def confined(folder: Path, name: object, *, where: str | None = None) -> Path:
    """Return the path of `name` in `folder`, whether or not it is there.

    Raises `InputError` for a name that is none, `OutputError` where a link of that name leads out of the
    folder; `where` is what both name as the place.
    """
    path = folder / check_name(name, where=where or str(folder))
    if leaves(path, folder):
        raise OutputError(
            f"{str(path)!r} is a link that leads out of its folder",
            where=where or str(folder),
            remedy="Remove the link, or name the place that it leads to.",
        )
    return path


def leaves(path: Path, folder: Path) -> bool:
    """Return whether a path is a link to what is not in `folder`, which may be a link itself."""
    if not path.is_symlink():
        return False
    target, inside = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath((target, inside)) != inside


def is_special(path: Path) -> bool:
    """Return whether a path is there and is neither file nor folder: opening a FIFO would wait for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
