"""What kernels a processor has while a test runs: the compiled ones, or plain torch alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def library() -> None:
    """Let a test run only where there is a compiler; there the kernels have to be compiled, and be right."""
    from llamafarm.kernels.cpu.choice import why_not_compiled

    reason = why_not_compiled()
    if reason and ("there is no C++ compiler" in reason or "on Linux only" in reason):
        pytest.skip(f"needs compiled kernels: {reason}")
    assert reason is None


@pytest.fixture(scope="module", params=["compiled", "plain"])
def each_way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the tests of a file twice: with the compiled kernels, and as where there is no compiler."""
    if request.param == "compiled":
        request.getfixturevalue("library")
        yield "compiled"
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llamafarm.kernels.cpu.choice.why_not_compiled", lambda: "there is no C++ compiler")
        yield "plain"
