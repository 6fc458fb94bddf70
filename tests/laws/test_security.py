"""How models are loaded and processes started, found in the syntax tree of every file of ours.

`test_source` bans what runs what it reads; here are the loaders that could be told to, and the commands.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    ROOT / "cli.py",
    *(path for folder in ("llamafarm", "demos") for path in sorted((ROOT / folder).rglob("*.py"))),
]
LOADERS = {"from_pretrained", "from_config"}
# Of PEFT, and of transformers, which read JSON and safetensors and have no such option.
WITHOUT_CODE = {"PeftModel", "LoraConfig", "GenerationConfig"}
BANNED_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "pty", "yaml"}
BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.hub.load", "os.system",
    "os.popen", "yaml.load", "os.startfile", "runpy.run_path", "runpy.run_module", "np.load", "numpy.load",
    "hub.load", "subprocess.getoutput", "subprocess.getstatusoutput", "os.fork", "os.posix_spawn",
}  # fmt: skip
BANNED_KEYWORDS = {"weights_only", "shell", "allow_pickle", "custom_generate", "executable", "preexec_fn"}
STARTS = {"Popen", "run", "call", "check_call", "check_output"}


def unsafe_places(tree: ast.AST) -> Iterator[str]:
    """Yield what a file of ours may not do, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            if banned := [name for name in names if name.split(".")[0] in BANNED_MODULES]:
                yield f"line {node.lineno}: imports {banned[0]}"
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {fault}" for fault in faults_of_call(node))


def faults_of_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in BANNED_CALLS:
        yield f"calls {name}"
    for keyword in BANNED_KEYWORDS & set(given):
        yield f"passes {keyword}"
    if isinstance(call.func, ast.Attribute) and call.func.attr in LOADERS:
        trusts = given.get("trust_remote_code")
        is_told = isinstance(trusts, ast.Constant) and trusts.value is False
        if not is_told and ast.unparse(call.func.value) not in WITHOUT_CODE:
            yield f"{name} is not told trust_remote_code=False"
    if name.startswith("subprocess.") and name.rpartition(".")[2] in STARTS:
        if not call.args or isinstance(call.args[0], ast.Constant | ast.JoinedStr | ast.BinOp):
            yield f"{name} is not given a list"
        if any(isinstance(part, ast.Constant) and part.value == "-m" for part in ast.walk(call)):
            yield f"{name} starts a module without interpreter.command_of, which leaves out where we stand"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_lets_code_in(path: Path) -> None:
    assert list(unsafe_places(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "AutoConfig.from_pretrained(name)",
        "AutoConfig.from_pretrained(name, trust_remote_code=None)",
        "AutoConfig.from_pretrained(name, trust_remote_code=config.trusts)",
        "AutoModelForCausalLM.from_config(config)",
        "AutoModelForCausalLM.from_pretrained(name, **options)",
        "import marshal",
        "from yaml import load",
        "torch.hub.load(name)",
        "load(path, weights_only=True)",
        "subprocess.run('ls ' + name)",
        "subprocess.run(f'ls {name}')",
        "subprocess.Popen([sys.executable, '-m', 'json'])",
        "model.generate(x, custom_generate=name)",
        "__import__(name)",
    ],
)
def test_what_is_unsafe_is_seen(code: str) -> None:
    assert len(list(unsafe_places(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "AutoConfig.from_pretrained(name, trust_remote_code=False)",
        "PeftModel.from_pretrained(model, folder)",
        "re.compile(pattern)",
        "subprocess.run([program, name])",
        "subprocess.Popen(command_of('llamafarm.x'))",
    ],
)
def test_what_is_safe_is_left_alone(code: str) -> None:
    assert list(unsafe_places(ast.parse(code))) == []


def test_every_loader_of_ours_is_looked_at() -> None:
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in FILES}
    loading = {name for name, text in texts.items() if ".from_pretrained(" in text or ".from_config(" in text}
    assert {"llamafarm/model/load.py", "llamafarm/model/full.py", "llamafarm/model/shape.py"} <= loading


def test_the_least_torch_has_the_mends() -> None:
    """2.10 is the first without the ways around `weights_only`: nothing here needs it, others may."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (least,) = [one.partition(">=")[2] for one in project["dependencies"] if one.startswith("torch>=")]
    assert tuple(map(int, least.split("."))) >= (2, 10)
