# Needs Python >= 3.11 with pip, and make. PYTHON=... picks the interpreter, JOBS=... the number of test processes,
# TESTS=... what make coverage and make lowest run (default: all).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
BIN := .venv/bin

.PHONY: demo test check lowest coverage docs clean

demo: .venv/installed
	$(BIN)/headstart demo --out runs/demo

# One thread per process: the processes share the cores.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: .venv/installed-test
	JOBS=$(JOBS) scripts/check

# The lowest versions of what is needed that pyproject.toml allows, in an environment of their own; types are checked
# with the newest ones.
lowest: .venv-lowest/installed-test
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

# Which lines the tests do not run. Slow on Python 3.11, where each line is traced; sys.monitoring is there from 3.12 on.
coverage: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(JOBS) --dist loadfile $(TESTS)
	$(BIN)/coverage combine
	$(BIN)/coverage report

# build/site/index.html; nothing is fetched but the builder
docs: .venv/installed-docs
	$(BIN)/python scripts/make_site.py

clean:
	rm -rf .venv .venv-lowest

# Where Python comes without ensurepip (Debian's without python3-venv), the pip outside fills the environment.
$(BIN)/python:
	$(PYTHON) -m venv .venv || { rm -rf .venv; $(PYTHON) -m venv --without-pip .venv \
		&& $(PYTHON) -m pip --python $(BIN)/python install pip; }

.venv/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	touch $@

.venv/installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[test]'
	touch $@ .venv/installed

.venv-lowest/installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install 'uv>=0.8'
	$(BIN)/uv venv --allow-existing --python $(BIN)/python .venv-lowest
	$(BIN)/uv pip install --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[test]'
	touch $@

.venv/installed-docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[docs]'
	touch $@ .venv/installed
