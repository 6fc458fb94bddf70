"""What importing the package does, before torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "found"), [(None, "1000"), ("20", "20")])
def test_threads_wait_briefly_unless_told_otherwise(given: str | None, found: str) -> None:
    environment = {name: text for name, text in os.environ.items() if name != "GOMP_SPINCOUNT"}
    script = (
        "import sys, llamafarm, os; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | ({} if given is None else {"GOMP_SPINCOUNT": given}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == found
