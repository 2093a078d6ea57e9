# Needs Python >= 3.11 with pip, and make. PYTHON=... picks the interpreter, JOBS=... the number of test processes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/installed
	$(BIN)/headstart demo --out runs/demo

# One thread per process: the processes share the cores.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

check: .venv/installed-test
	JOBS=$(JOBS) scripts/check

clean:
	rm -rf .venv

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
