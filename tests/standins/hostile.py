"""What an attacker could hand over: names, files that would run if they were opened as code, and a witness.

The witness hears of every file that this process opens for writing and of every process that it starts,
through Python's own audit events: whatever library does it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

MARKER = "executed"

_ABOVE = [
    "..",
    "../",
    "../x",
    "../../etc/passwd",
    "a/../../x",
    "..\\x",
    "..\\..\\x",
    "a/..",
    "x/",
    "/",
    "//",
    ".",
]
_ABSOLUTE = [
    "/etc/passwd",
    "/tmp/x",
    "//host/share",
    "\\\\host\\share",
    "C:\\x",
    "C:/x",
    "~",
    "~/x",
    "~root/x",
]
_ENCODED = [
    "%2e%2e%2fx",
    "..%2fx",
    "..%c0%afx",
    "....//x",
    "..;/x",
    "．．/x",
    "..／x",
    "%00",
    "file:///etc/passwd",
]
_CONTROLS = ["\0", "a\0b", "a\nb", "a\r\nb", "a\tb", "\x1b[2Ja", "a\x7fb", "a\u2028b", "a\u202eb", "\ud800"]
_SHELL = [
    "; touch executed", "$(touch executed)", "`touch executed`", "| touch executed", "&& touch executed",
    "> executed", "'; touch executed; '", '"; touch executed; "', "${IFS}touch${IFS}executed", "-rf",
    "--help", "-o ProxyCommand=touch executed", "*", "?", "!!", "%n%s", "{{ 7 * 7 }}", "{{ ''.__class__ }}",
    "${jndi:x}", "__import__('os').mkdir('executed')", "<script>alert(1)</script>", "'", '"', "''''",
]  # fmt: skip
_MODELFILE = [
    'x"""\nFROM /etc/passwd', "x\nFROM /etc/passwd", 'x"""', "x\nSYSTEM y", "x:y:z", "host/../x", "a//b",
    "a:../b",
]  # fmt: skip
_RESERVED = ["CON", "nul", "aux.txt", "COM1", "lpt9.gguf", "x.", "x ", " x", "con .x", "CONIN$"]
_LONG = ["a" * 300, "é" * 200, "a" * 5000, "../" * 200, "a/" * 200]
_ALONE = [
    *_ABOVE,
    *_ABSOLUTE,
    *_ENCODED,
    *_CONTROLS,
    *_SHELL,
    *_MODELFILE,
    *_RESERVED,
    *_LONG,
    "",
    " ",
    "...",
]
_TOGETHER = [
    f"{one}{two}" for one, two in product(("../", "/tmp/", "x\n", "a;b ", "..\\"), [*_SHELL, *_RESERVED])
]
_AROUND = [f"model{one}" for one in [*_ABOVE, *_CONTROLS, *_SHELL]]
NAMES = list(dict.fromkeys([*_ALONE, *_TOGETHER, *_AROUND]))
assert len(NAMES) >= 300

# Every name that torch, transformers, PEFT, accelerate, datasets or their trainers open as a pickle.
PICKLES = (
    "pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "adapter_model.bin", "adapter_model.pt",
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state.pth",
    "rng_state_0.pth", "training_args.bin", "trainer_state.pt", "consolidated.00.pth", "model.pt",
    "model.pth", "last.ckpt", "model.ckpt", "model.pkl", "vocab.pkl", "tokenizer.pkl", "data.pkl",
    "state.pickle", "random_states_0.pkl", "custom_checkpoint_0.pkl", "imatrix.dat", "eigens.pt",
    "cache.joblib", "weights.npy", "dataset.arrow.pkl", "mp_rank_00_model_states.pt", "tf_model.h5",
    "flax_model.msgpack", "embeddings.pt",
)  # fmt: skip

# Modules that somebody's `auto_map` names, or that Python would import by themselves from where we stand.
CODE = (
    "modeling_x.py", "configuration_x.py", "tokenization_x.py", "custom_generate/generate.py", "handler.py",
    "pipeline.py", "sitecustomize.py", "usercustomize.py", "conftest.py", "setup.py", "__init__.py",
    "dataset.py", "data.py", "json.py", "xllamacpp.py", "numpy.py", "torch.py", "typing.py", "secrets.py",
    "llamafarm.py",
)  # fmt: skip
AUTO_MAP = {
    "AutoConfig": "configuration_x.X",
    "AutoModel": "modeling_x.X",
    "AutoModelForCausalLM": "modeling_x.X",
    "AutoTokenizer": ["tokenization_x.X", "tokenization_x.X"],
}


class Hung(BaseException):
    """Something waits for ever; nobody's `except Exception` or `except OSError` takes it for a refusal."""


@contextmanager
def ending_within(seconds: int) -> Iterator[None]:
    """Raise `Hung` if what is done meanwhile takes longer."""

    def give_up(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Canary:
    """A pickle of it makes a folder where it is read."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self._marker), 0o777, True)


def plant(folder: Path, marker: Path, *, names: tuple[str, ...] = (*PICKLES, *CODE)) -> None:
    """Put files into `folder` that make `marker` if one of them is unpickled or run."""
    code = f"import os\nos.makedirs({str(marker)!r}, exist_ok=True)\nclass X: pass\n"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".py"):
            path.write_text(code, encoding="utf-8")
        else:
            path.write_bytes(pickle.dumps(Canary(marker)))
    index = '{"metadata": {}, "weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}'
    (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")


class Witness:
    """What was done outside of a folder: paths written to, and processes started."""

    def __init__(self, inside: Path) -> None:
        self._inside = os.path.realpath(inside)
        self.written: list[str] = []
        self.started: list[str] = []

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """Note an audit event."""
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn"):
            if given[:1] != ("nvidia-smi",):  # by its whole command, in which nobody's words stand
                self.started.append(f"{event} {given[:2]}")
        elif event == "open":
            path, mode, flags = given
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else mode
            if isinstance(path, str | bytes) and writes:
                self._note(path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            self._note(given[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._note(given[1])

    def _note(self, path: Any) -> None:
        text = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        if (
            not text
            or text == os.devnull
            or text.endswith(".pyc")
            or ".pyc." in text
            or "__pycache__" in text
        ):
            return
        where = os.path.realpath(Path(text).parent)
        if os.path.commonpath((where, self._inside)) != self._inside:
            self.written.append(text)


_WITNESSES: list[Witness] = []
_HEARS: list[bool] = []


@contextmanager
def witnessing(inside: Path) -> Iterator[Witness]:
    """Hear of what is written outside of `inside` and of what is started, meanwhile."""
    if not _HEARS:  # an audit hook stays for ever
        sys.addaudithook(lambda event, given: [one.hear(event, given) for one in _WITNESSES] and None)
        _HEARS.append(True)
    witness = Witness(inside)
    _WITNESSES.append(witness)
    try:
        yield witness
    finally:
        _WITNESSES.remove(witness)
