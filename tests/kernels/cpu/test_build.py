"""How the library comes about: by the compiler that is there, once, where nobody else can write."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llamafarm.kernels import compiled
from llamafarm.kernels.cpu import build, choice, library
from llamafarm.kernels.cpu.build import BuildError, built_library

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux only")


class FakeCompiler:
    """A script that writes its arguments and its environment down, and a file where `-o` says."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path, self._folder = folder / "fake-c++", folder
        self.become()

    def become(self, *, version: str = "fake 1.0", error: str = "") -> None:
        failure = f"printf '%s\\n' 'In file x:' '{error}' 'note: more' >&2\nexit 3" if error else ""
        self.path.write_text(
            f"""#!/bin/sh
case "$*" in *--version)
    echo '{version}'
    exit 0
esac
echo "$*" >> '{self._folder}/calls'
env > '{self._folder}/environment'
{failure}
while [ "$1" != -o ]; do shift; done
echo 'a library' > "$2"
""",
            encoding="utf-8",
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        calls = self._folder / "calls"
        return calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []

    @property
    def environment(self) -> dict[str, str]:
        lines = (self._folder / "environment").read_text(encoding="utf-8").splitlines()
        return dict(line.partition("=")[::2] for line in lines)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache, for the time of a test; it does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_temporary", None)
    yield tmp_path / "cache"
    if build._temporary is not None:
        build._temporary.cleanup()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    fake = FakeCompiler(tmp_path / "compiler")
    monkeypatch.setenv("CXX", str(fake.path))
    return fake


@pytest.fixture
def nothing_known() -> Iterator[None]:
    """Forget which library there is, and once more afterwards."""
    caches = choice.why_not_compiled, library._library, library._function
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


@needs_linux
def test_the_library_is_compiled_once_and_found_again(cache: Path, compiler: FakeCompiler) -> None:
    path = built_library()
    assert path.read_text(encoding="utf-8") == "a library\n"
    assert path.parent == cache / "llamafarm" / "kernels" and path.suffix == ".so"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (call,) = compiler.calls
    sources = sorted((Path(build.__file__).parent / "source").glob("*.cpp"))
    assert len(sources) >= 3 and all(str(source) in call for source in sources)
    assert "-ffast-math" not in call
    assert built_library() == path
    assert len(compiler.calls) == 1
    assert list(path.parent.iterdir()) == [path], "nothing unfinished is left"


@needs_linux
def test_another_compiler_option_processor_or_source_is_another_library(
    cache: Path, compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [built_library()]
    compiler.become(version="fake 1.1")
    paths.append(built_library())
    monkeypatch.setattr(build, "_OPTIONS", (*build._OPTIONS, "-O1"))
    paths.append(built_library())
    monkeypatch.setattr(build, "_processor", lambda: "another one")
    paths.append(built_library())
    shutil.copytree(build._SOURCE, tmp_path / "source")
    monkeypatch.setattr(build, "_SOURCE", tmp_path / "source")
    assert built_library() == paths[-1], "where the sources lie does not matter"
    with (tmp_path / "source" / "vector.h").open("a", encoding="utf-8") as header:
        header.write("// changed\n")
    paths.append(built_library())
    monkeypatch.setenv("CXX", f"{compiler.path} -DMORE")
    paths.append(built_library())
    assert len(set(paths)) == len(paths) == len(compiler.calls)
    assert compiler.calls[-1].startswith("-DMORE ")


@needs_linux
def test_the_first_compiler_on_the_path_is_taken(
    cache: Path, compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "g++").symlink_to(compiler.path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for tool in ("env", "sh"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool, path=os.defpath) or "")
    assert built_library().is_file()
    assert len(compiler.calls) == 1


@needs_linux
def test_no_compiler_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"^there is no C\+\+ compiler \(g\+\+, c\+\+\)$"):
        built_library()
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    with pytest.raises(BuildError, match=r"missing cannot be run: "):
        built_library()


def test_elsewhere_than_on_linux_nothing_is_compiled(
    cache: Path, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BuildError, match="Linux only"):
        built_library()
    assert not compiler.calls and not cache.exists()


@needs_linux
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(cache: Path, compiler: FakeCompiler) -> None:
    compiler.become(error="x.cpp:3:1: error: no such option")
    with pytest.raises(BuildError) as caught:
        built_library()
    assert str(caught.value) == f"{compiler.path} ended with 3: x.cpp:3:1: error: no such option"
    assert not list((cache / "llamafarm" / "kernels").iterdir())
    compiler.become()
    assert built_library().is_file(), "a failure is not kept"


@needs_linux
def test_a_compiler_that_takes_too_long_is_given_up(
    cache: Path, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_MOST_SECONDS", 0.05)
    compiler.path.write_text("#!/bin/sh\nexec sleep 5\n", encoding="utf-8")
    with pytest.raises(BuildError, match="timed out"):
        built_library()


@needs_linux
def test_the_compiler_learns_no_secret(
    cache: Path, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CPATH", "/opt/include")
    built_library()
    environment = compiler.environment
    assert "secret" not in environment.values()
    assert environment["PATH"] == os.environ["PATH"] and environment["CPATH"] == "/opt/include"
    assert environment["LC_ALL"] == "C", "errors are looked for in English"


@needs_linux
def test_without_a_folder_for_caches_it_is_that_of_the_home(
    cache: Path, compiler: FakeCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert built_library().parent == tmp_path / "home" / ".cache" / "llamafarm" / "kernels"


@needs_linux
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_what_others_could_have_written_is_not_loaded(cache: Path, compiler: FakeCompiler, mode: int) -> None:
    planted = built_library()
    planted.write_text("planted", encoding="utf-8")
    planted.parent.chmod(mode)
    path = built_library()
    assert not path.is_relative_to(cache)
    assert path.read_text(encoding="utf-8") == "a library\n"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert built_library() == path and len(compiler.calls) == 2, "once for the process"


@needs_linux
def test_a_folder_of_somebody_else_is_not_used(
    cache: Path, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_library()
    somebody_else = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody_else)
    assert not built_library().is_relative_to(cache)


@needs_linux
@pytest.mark.parametrize("hindrance", ["a file in its place", "full", "read-only"])
def test_where_the_cache_cannot_be_written_to_the_library_is_for_this_process(
    cache: Path, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch, hindrance: str
) -> None:
    if hindrance == "a file in its place":
        cache.write_text("", encoding="utf-8")
    elif hindrance == "full":

        def fail(**_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(build.tempfile, "TemporaryFile", fail)
    elif os.getuid() == 0:
        pytest.skip("root can write anywhere")
    else:
        (cache / "llamafarm" / "kernels").mkdir(parents=True)
        (cache / "llamafarm" / "kernels").chmod(0o500)
    path = built_library()
    assert path.is_file() and not path.is_relative_to(cache)


@needs_linux
@pytest.mark.usefixtures("nothing_known")
def test_a_reason_is_found_once_and_said(
    cache: Path, compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler.become(error="error: nothing works")
    assert compiled.why_not_compiled("cpu") == f"{compiler.path} ended with 3: error: nothing works"
    for tensor in (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)):
        assert not choice.is_compiled(tensor) and compiled.room_of(tensor) is None
    assert len(compiler.calls) == 1, "each tensor asks, the compiler does not run each time"


@needs_linux
@pytest.mark.usefixtures("nothing_known")
def test_a_library_that_cannot_be_loaded_is_a_reason_too(cache: Path, compiler: FakeCompiler) -> None:
    reason = choice.why_not_compiled()
    assert reason is not None and str(cache) in reason
    assert compiled.kernels_for(torch.zeros(3), "elementwise") is None


@needs_linux
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of one kind")
@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512", "sapphirerapids"])
def test_the_sources_are_for_processors_with_narrow_and_wide_vectors(processor: str) -> None:
    """Without and with instructions for 16-bit numbers: what this one lacks is another branch of them."""
    options = [option for option in build._OPTIONS if not option.startswith("-march")]
    sources = map(str, sorted(build._SOURCE.glob("*.cpp")))
    build._run([*build._find_compiler(), *options, f"-march={processor}", "-fsyntax-only", *sources])


@pytest.mark.usefixtures("library", "nothing_known")
def test_a_library_that_gives_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from llamafarm.kernels.cpu import elementwise

    right = elementwise.gate
    monkeypatch.setattr(elementwise, "gate", lambda *args: right(*args) + 0.01)
    assert choice.why_not_compiled() == "a trial gave other numbers than torch"


@pytest.mark.usefixtures("library", "nothing_known")
def test_the_library_of_this_machine() -> None:
    with torch.inference_mode():
        assert compiled.why_not_compiled("cpu") is None
    loaded = ctypes.CDLL(str(built_library()))
    for name in ("attend_float", "normalize_bfloat", "gate_backward_gelu_tanh_bfloat", "rotate_float"):
        assert hasattr(loaded, name)
    assert [compiled.room_of(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)] == [
        "cpu",
        "cpu",
    ]
    assert compiled.room_of(torch.zeros(2, dtype=torch.float16)) is None
    assert compiled.room_of(torch.zeros(2, device="meta")) is None


def test_a_damaged_library_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged, whole = tmp_path / "damaged.so", object()
    damaged.write_bytes(b"\x7fELF")
    asked: list[bool] = []

    def built(*, anew: bool = False) -> Path:
        asked.append(anew)
        return tmp_path / "whole.so" if anew else damaged

    def load(path: str) -> object:
        if path == str(damaged):
            raise OSError("file too short")
        return whole

    monkeypatch.setattr(library, "built_library", built)
    monkeypatch.setattr(library.ctypes, "CDLL", load)
    assert library._library.__wrapped__() is whole
    assert asked == [False, True]
