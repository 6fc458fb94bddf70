# Set-up and checks. `make demo` and `make test` need nothing but Python 3.11 or newer.

# uv where it is installed; else one of our own, in .uv/.
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# Wheels that pip is told to look for on this machine serve uv as well.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
export UV_NO_PROGRESS ?= 1
RUN := $(UV) run --no-sync

.PHONY: setup demo docs test test-slow test-extras lint types contract check clean

setup: .venv/installed

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv/installed: pyproject.toml | $(filter .uv/bin/uv,$(UV))
	$(UV) sync
	@touch $@

demo: setup
	$(RUN) python demos/demo3_training.py

test: setup
	$(RUN) pytest

# What takes minutes: the demo, from end to end.
test-slow: setup
	$(RUN) pytest -m slow

# What needs an optional library. It comes last in CI: peft imports bitsandbytes wherever it is installed.
test-extras: setup
	$(UV) run --extra qlora --extra datasets --extra wandb --extra mlflow --extra trackio pytest \
		tests/model/test_quantized.py tests/training/test_qlora.py tests/data/reading/test_hub_datasets.py \
		tests/training/trackers
	TRITON_INTERPRET=1 $(UV) run --group triton pytest tests/kernels/gpu

lint: setup
	$(RUN) ruff check .
	$(RUN) ruff format --check .

types: setup
	$(RUN) mypy

contract: setup
	$(RUN) lint-imports

# The generated pages: docs/reference/ and docs/guide/tables.md. The tests fail when one is stale.
docs: setup
	$(RUN) python tools/write_reference.py

check: lint types contract test

clean:
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
