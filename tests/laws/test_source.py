"""What no file of the package may do, found in its syntax tree, and how long files and functions may be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "llamafarm"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES_OF_FILE = 300
MOST_LINES_OF_FUNCTION = 60

# Modules that run, or can run, what they read.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
# torch's own files are pickles; the rest run text as code, or through a shell.
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "os.system", "os.popen", "subprocess.getoutput"}
MUST_BE_FALSE = {"shell", "trust_remote_code", "allow_pickle"}


def unsafe_places(tree: ast.AST) -> Iterator[str]:
    """Yield what is unsafe in a syntax tree, each with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules = [name.name for name in names]
            case ast.ImportFrom(module=str(module), names=names):
                modules = [module, *(f"{module}.{name.name}" for name in names)]
            case _:
                modules = []
        unsafe = [name for name in modules if name.split(".")[0] in UNSAFE_MODULES or name in UNSAFE_CALLS]
        if unsafe:
            yield f"line {node.lineno}: imports {unsafe[0]}"
        if isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in UNSAFE_CALLS:
                yield f"line {node.lineno}: calls {name}"
            for keyword in node.keywords:
                if keyword.arg in MUST_BE_FALSE and not is_false(keyword.value):
                    yield f"line {node.lineno}: passes {keyword.arg}"
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in MUST_BE_FALSE and not is_false(value):
                    yield f"line {node.lineno}: sets {key.value}"


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def too_long(text: str) -> Iterator[str]:
    """Yield what is too long in a file whose docstring gives no reason, by the word "lines"."""
    tree = ast.parse(text)
    if re.search(r"\blines\b", ast.get_docstring(tree) or ""):
        return
    num_lines = len(text.splitlines())
    if num_lines > MOST_LINES_OF_FILE:
        yield f"{num_lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MOST_LINES_OF_FUNCTION:
                yield f"{node.name}: {length} lines"


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_runs_what_it_reads(path: Path) -> None:
    assert list(unsafe_places(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_or_function_is_too_long_without_a_reason(path: Path) -> None:
    assert list(too_long(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "weights = torch.load(path)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=is_shell)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "options = {'trust_remote_code': config.trusts}",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_is_unsafe_is_seen(code: str) -> None:
    assert len(list(unsafe_places(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code", ["model.eval()", "load(path, trust_remote_code=False)", "'pickle' in name", "import torch"]
)
def test_what_is_safe_is_left_alone(code: str) -> None:
    assert list(unsafe_places(ast.parse(code))) == []


def test_what_is_too_long_is_seen_unless_the_docstring_says_why() -> None:
    function = "def f():\n" + "    pass\n" * MOST_LINES_OF_FUNCTION
    assert list(too_long(function)) == ["f: 61 lines"]
    assert list(too_long("pass\n" * 301)) == ["301 lines"]
    assert list(too_long('"""More than 300 lines, because it is a table."""\n' + function)) == []


def test_every_file_of_the_package_is_looked_at() -> None:
    assert {"cli.py", "training/run.py", "strategy/load.py"} <= {
        path.relative_to(PACKAGE).as_posix() for path in FILES
    }
