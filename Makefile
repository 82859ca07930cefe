# make demo and make test work on a fresh clone: Python 3.11 or newer, nothing else installed by hand.

PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
BIN := $(VENV)/bin
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --no-header
# Imported once at installation, so that the first start finds them compiled; compiling everything takes longer.
FIRST_USED := import nagaya.server.app, nagaya.cli.main, nagaya.cli.serving, nagaya.cli.demo_scenario, \
	nagaya.cli.office, sqlalchemy.dialects.sqlite.aiosqlite, uvicorn.lifespan.on, uvloop, rich.table, asyncio

.PHONY: install demo test check test-long bench lock clean

install: $(VENV)/.installed

# Nothing is downloaded that the lock does not name with its hash, the installer included.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Nagaya needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@test -x $(1)/bin/uv || $(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@$(1)/bin/uv pip install --quiet --python $(1)/bin/python --require-hashes -r $(2)
	@$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps --no-build-isolation --editable .
	@PYTHONDONTWRITEBYTECODE= $(1)/bin/python -c '$(FIRST_USED)'
	@touch $(1)/.installed
endef

$(VENV)/.installed: pyproject.toml requirements/dev.txt requirements/uv.txt
	$(call environment,$(VENV),requirements/dev.txt)

$(BENCH)/.installed: pyproject.toml requirements/bench.txt requirements/uv.txt
	$(call environment,$(BENCH),requirements/bench.txt)

demo: install
	@$(BIN)/nagaya demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest -n 2 --dist loadfile -m "not long"

test-long: check
	$(BIN)/pytest

bench: $(BENCH)/.installed
	$(BENCH)/bin/nagaya bench --write

# Raises every locked version to the newest that pyproject.toml allows.
lock: install
	$(COMPILE) --upgrade requirements/uv.in -o requirements/uv.txt
	$(COMPILE) --upgrade --extra all --group dev --group build pyproject.toml -o requirements/dev.txt
	$(COMPILE) --upgrade --extra all --group dev --group build --group bench pyproject.toml -o requirements/bench.txt

clean:
	rm -rf $(VENV) $(BENCH) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .parts dist build
